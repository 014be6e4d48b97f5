"""Executes one run from the command line: checks the input, starts TensorFlow, learns, and prints the results."""

import dataclasses
import datetime
import sys

from absl import logging

from tf_packnet.pruning import timing
from tf_packnet.runs import data, network_files, output
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import RunPaths, expand
from tf_packnet.runs.workers import Workers, joined
from tf_packnet.tasks.sources import check_name


def main(config: Config, stages_dir: str | None = None) -> None:
    """Run `config` and print its results. If the run is complete already, only print them.

    Args:
        config: The run.
        stages_dir: Folder or URL of a store of stages to share with other runs; default: a folder in the output
            directory.

    Raises:
        ArgumentError: Before any training, if data, machine or output directory do not allow the run, or the data has
            changed since the run was completed.
    """
    now = datetime.datetime.now().astimezone()
    with joined(config) as workers:
        _main(config, stages_dir, workers, now)


def _main(config: Config, stages_dir: str | None, workers: Workers, now: datetime.datetime) -> None:
    check_inputs(config)
    workers.check_equal("the flags", config.identity())
    root = expand(config.directory())
    place = output.check_stages_dir(stages_dir if workers.first else None, RunPaths(root).stages)
    shared_folder = None if place.folder == RunPaths(root).stages else place.folder
    results = workers.tell(lambda: output.check(config, shared_folder))
    if workers.first and results is None:
        output.check_shared(place)
    if results is None and config.deadline is not None:
        moment = timing.moment_of(config.deadline, now)  # a time of day would mean another moment tomorrow
        timing.check_is_ahead(moment, now)
        config = dataclasses.replace(config, deadline=moment.isoformat(timespec="seconds"))
    if results is None:
        from tf_packnet.system.quiet import start_tensorflow

        start_tensorflow()
        from tf_packnet.runs.runner import run_config

        results = run_config(config, place, workers).to_json()
    elif workers.first:
        network_files.check_unchanged(results, config, root)
        data.check_unchanged(results, config, root)
        print(f"{config.directory()} has the complete results of this run: nothing to compute", file=sys.stderr)
    if workers.first:
        from tf_packnet.reporting.summary import print_results

        print_results(results, root)


def show_plan(config: Config) -> None:
    """Print how many weights each task of a run will get. Writes nothing.

    Raises:
        ArgumentError: If data or machine do not allow the run, or some task would get no weights.
    """
    check_inputs(config)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow(on_cpu=True)
    from tf_packnet.runs import networks
    from tf_packnet.runs.data import load_stream
    from tf_packnet.runs.setup import build_model, plan_of

    networks.builder(config)  # raises errors before the data is loaded
    stream = load_stream(config)
    model = build_model(config, stream)
    print(plan_of(config, stream, model))


def check_inputs(config: Config) -> None:
    """Raise ArgumentError if the data set or the files of the network of `config` do not exist."""
    logging.set_verbosity(logging.ERROR)  # TFDS and TensorFlow log warnings even on success
    check_name(config.dataset, config.data_dir)
    network_files.check(config)
