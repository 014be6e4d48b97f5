"""What the launcher calls: check what can be checked at once, then start TensorFlow, run, and print."""

import sys

from absl import logging

from tf_packnet.runs import data, output
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import folder
from tf_packnet.tasks.sources import check_name


def main(config: Config, stages_dir: str | None = None) -> None:
    """Runs `config`, unless that very run is there already, and prints its results.

    Args:
        config: The run.
        stages_dir: A store of stages to share with other runs; default one of its own.

    Raises:
        ArgumentError: Before any work, if something in `config` cannot be had, or the results that are there are of
            other data.
    """
    logging.set_verbosity(logging.ERROR)  # what TFDS and TensorFlow remark while all goes well
    check_name(config.dataset, config.data_dir)
    results = output.check(config)
    store = output.check_stages_dir(stages_dir)
    if results is None:
        from tf_packnet.system.quiet import start_tensorflow

        start_tensorflow()
        from tf_packnet.runs.runner import run

        results = run(config, store).to_json()
    else:
        data.check_unchanged(results, config, folder(config.where()))
        print(f"complete already in {config.where()}: nothing was computed again", file=sys.stderr)
    from tf_packnet.reporting.summary import print_results

    print_results(results, folder(config.where()))


def show_plan(config: Config) -> None:
    """Prints what the tasks of a run will get of its network's weights, and writes nothing.

    Raises:
        ArgumentError: If something in `config` cannot be had, or there is no room for so many tasks.
    """
    logging.set_verbosity(logging.ERROR)
    check_name(config.dataset, config.data_dir)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow(on_cpu=True)
    from tf_packnet.planning import plan
    from tf_packnet.runs.data import load_stream
    from tf_packnet.runs.setup import build_model

    stream = load_stream(config)
    model = build_model(config, stream)
    print(plan(model, len(stream), config.final_prune, config.prune_rounds, config.prune_scope))
