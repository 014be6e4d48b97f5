"""One run with all its output files: results, owner maps, the pack, SavedModels, TensorBoard."""

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.approaches import Approach, PackNet
from tf_packnet.approaches.base import Observers
from tf_packnet.callbacks import EpochLog, StopWhenInterrupted, save_owner_maps
from tf_packnet.export import export_report, export_task
from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile.info import info_of
from tf_packnet.packfile.saving import save_pack
from tf_packnet.pruning import ownership
from tf_packnet.pruning.policies import TRAIN
from tf_packnet.reporting import tensorboard, tensorboard_runs
from tf_packnet.reporting.progress import RunProgress
from tf_packnet.runs import output
from tf_packnet.runs.config import Config
from tf_packnet.runs.corruption import Manifest, checksums
from tf_packnet.runs.learning import Run, learn
from tf_packnet.runs.paths import RunPaths, StorePlace, expand
from tf_packnet.runs.results import Results
from tf_packnet.runs.shared_store import open_store
from tf_packnet.runs.stage_folder import StageFolder
from tf_packnet.runs.stages import Plans
from tf_packnet.runs.store import StageStore, lengths_in
from tf_packnet.runs.workers import Workers
from tf_packnet.system import files
from tf_packnet.tasks import Task
from tf_packnet.text import file_name
from tf_packnet.training import acceleration

# Seconds of each latency measurement (per task and batch size), for the report of exports.
LATENCY_SECONDS = 0.04


def run_config(config: Config, place: StorePlace | None = None, workers: Workers | None = None) -> Results:
    """Learn all tasks of a data set, and evaluate, save and export after each one.

    Args:
        config: The run.
        place: Where stages are stored; default: in the output directory. After a complete run the local folder keeps
            the records of all stages and the state after the last: damaged files are rebuilt from them.
        workers: The workers that learn together. Only the first one writes files.

    Raises:
        ArgumentError: Before any training, if data, machine or output directory do not allow the run.
    """
    run = Run.prepare(config, workers=workers)
    paths = RunPaths(expand(config.directory()))
    place = place or StorePlace(paths.stages)
    with RunProgress(run.stream) as display:
        if not run.workers.first:
            return follow(run, place, display)
        approach = run.build_approach(paths.masks, observers(config, paths, display))
        keys = stage_keys(run, approach, lambda request: lengths_in(StageFolder(place.folder / request).entry()))
        with output.prepared(config, place.folder, keys, display.log) as on_damaged:
            run.results.write(paths.results)
            show_execution(run, display)
            on_reused = reused_stage_log(run, approach, paths, display)
            store = open_store(place, on_damaged, display.log)
            for number in learn(run, approach, store, with_state=True, on_reused=on_reused):
                save(run, paths, approach, run.stream[number - 1])
            export_summary(run, paths)
            finish(run, paths, stage_keys(run, approach, store.lengths))
    return run.results


def stage_keys(run: Run, approach: Approach, plans: Plans) -> list[str]:
    """Return the keys of a run in the store: of its stages, and of the plans of retrainings with a time budget."""
    return [key for stage in run.stages(approach, plans) for key in (stage.request, stage.key) if key]


def follow(run: Run, place: StorePlace, display: RunProgress) -> Results:
    """Learn what the first worker learns, without writing files."""
    approach = run.build_approach(None, lambda task, stage: [display.stage(task, stage), StopWhenInterrupted()])
    show_execution(run, display)
    for _ in learn(run, approach, StageStore(place.folder), with_state=True):
        approach.reset_for_saving()  # as in `save`: all workers must change variables in the same way
    return run.results


def show_execution(run: Run, display: RunProgress) -> None:
    """Show the execution settings, and whether the precision is slow on this CPU."""
    display.log(describe_execution(run.execution))
    precision = run.config.precision
    if not acceleration.computes_in(precision):
        display.log(f"this CPU has no instructions for --precision={precision}: expect float32 to be faster")


def save(run: Run, paths: RunPaths, approach: Approach, task: Task) -> None:
    """Save the network after `task`: owner maps, pack, SavedModel, TensorBoard, results."""
    with run.results.timed("save"):
        maps = {path: owner * ownership.visible(owner, task.number) for path, owner in approach.owner_maps().items()}
        save_owner_maps(paths.owner_maps(task.number), maps)
        approach.reset_for_saving()
        save_keras(approach.packed, paths.pack)
        if isinstance(approach, PackNet):
            save_pack_file(run, paths, task)
            if run.config.export:
                export_saved_model(run, paths, task)
        tensorboard.log_pack(paths.tensorboard, approach.packed, maps, run.results.to_json(), task.number)
        run.results.write(paths.results)


def save_pack_file(run: Run, paths: RunPaths, task: Task) -> None:
    """Write the `.packnet` file. If the next task is already open, the file is written after that task."""
    if lifecycle.has_open_task(run.network):
        return
    learned = run.stream[: task.number]
    accuracy = dict(zip((each.name for each in learned), run.results.accuracy[-1], strict=True))
    info = info_of(learned, run.config.dataset, accuracy, {"config": run.config.identity()})
    save_pack(run.network, paths.pack_file, info=info, free_values=run.config.freed_weights == "keep")


def export_saved_model(run: Run, paths: RunPaths, task: Task) -> None:
    """Write the SavedModel of `task`."""
    path, compact = paths.export(task.number), run.config.compact
    if path.is_dir() and files.kind(path / "saved_model.pb") != files.FILE:
        shutil.rmtree(path)  # a damaged export; `output.prepared` has checked that the run wrote all that is in it
    options: dict[str, Any] = {"class_names": task.class_names, "encoding": task.encoding}
    export_task(run.network, task.name, path, format="saved_model", compact=compact, **options)


def export_summary(run: Run, paths: RunPaths) -> None:
    """Write `export/report.json`: size and speed of every compact SavedModel compared with a dense one."""
    if run.config.export and run.config.compact and run.config.approach == "packnet":
        with run.results.timed("save"):
            export_report(run.network, paths.exports, seconds=LATENCY_SECONDS)


def finish(run: Run, paths: RunPaths, keys: Sequence[str]) -> None:
    """Write hyperparameters for TensorBoard and the results, and last of all the manifest.

    Args:
        run: The run.
        paths: Its output directory.
        keys: The keys of its stages.
    """
    results, config = run.results, run.config
    tensorboard_runs.log_run(paths.tensorboard, results.to_json(), Config().to_json())
    results.complete = True
    results.write(paths.results)
    sums = checksums(paths.root, paths.rebuildable(), include=paths.is_output)
    sums |= checksums(paths.root, [paths.results, paths.stages])
    Manifest(config.to_json(), sums, keys).write(paths.manifest)


def describe_execution(execution: dict[str, Any]) -> str:
    """Describe the execution settings in one line."""
    compiles = {
        "step": "XLA compiles whole gradient steps",
        "update": "XLA compiles masks and optimizer, oneDNN computes the convolutions",
        "off": "XLA is off",
    }[execution["xla"]]
    data = {"device": "training data on the device", "stream": "training data streamed"}
    device, replicas = execution["device"], execution["replicas"]
    workers = f" of {execution['workers']} workers" if "workers" in execution else ""
    devices = [f"{replicas} replicas{workers}"] * (replicas > 1) + [device] * (device != "CPU")
    return "; ".join([compiles, data[execution["data_residency"]], *devices])


def save_keras(packed: PackedModel, path: Path) -> None:
    """Write `packed` as a `.keras` file, atomically. The same pack always gives the same bytes."""
    with files.replacing(path) as temporary:
        dated = temporary.with_name("dated.keras")
        packed.save(dated)
        with zipfile.ZipFile(dated) as source, zipfile.ZipFile(temporary, "w") as target:
            for name in source.namelist():
                if name == "metadata.json":  # omits the date of saving, which nothing reads
                    target.writestr(zipfile.ZipInfo(name), json.dumps({"keras_version": keras.__version__}))
                    continue
                with source.open(name) as content, target.open(zipfile.ZipInfo(name), "w", force_zip64=True) as copy:
                    shutil.copyfileobj(content, copy, 2**20)


def epoch_log(config: Config, paths: RunPaths, number: int, name: str, stage: str) -> EpochLog:
    """Return the callback that writes the TensorBoard curves of a stage; both stages of a task share one axis."""
    first_epoch = 0 if stage == TRAIN else config.train_epochs
    return EpochLog(paths.tensorboard / f"task_{number}_{file_name(name)}", first_epoch)


def observers(config: Config, paths: RunPaths, display: RunProgress) -> Observers:
    """Give every stage its callbacks: TensorBoard curves, progress display, and a check for pending signals."""

    def callbacks(task: Task, stage: str) -> list[keras.callbacks.Callback]:
        return [
            epoch_log(config, paths, task.number, task.name, stage),
            display.stage(task, stage),
            StopWhenInterrupted(),
        ]

    return callbacks


def reused_stage_log(
    run: Run, approach: Approach, paths: RunPaths, display: RunProgress
) -> Callable[[dict[str, Any]], None]:
    """Return the `on_reused` callback for `learn`: it shows a line and writes the TensorBoard curves of the stage."""

    def log(record: dict[str, Any]) -> None:
        number, stage = record["task"], record["stage"]
        display.log(f"task {number}/{len(run.stream)}  {stage}: reused from the store")
        name = approach.training_name(run.stream, number)
        epoch_log(run.config, paths, number, name, stage).write(record["history"])

    return log
