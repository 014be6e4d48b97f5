"""One run with all that it leaves behind: results, owner maps, the pack, SavedModels, TensorBoard."""

import json
import shutil
import zipfile
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
from tf_packnet.reporting import progress, tensorboard
from tf_packnet.runs import corruption, output
from tf_packnet.runs.config import Config
from tf_packnet.runs.corruption import Manifest, checksums
from tf_packnet.runs.learning import Run, learn
from tf_packnet.runs.paths import RunPaths
from tf_packnet.runs.results import Results
from tf_packnet.runs.store import StageStore
from tf_packnet.system import files
from tf_packnet.tasks import Task
from tf_packnet.training import acceleration

LATENCY_SECONDS = 0.04  # a task and batch size, for the report of exports: loading what is timed takes longer


def run(config: Config, stages_dir: Path | None = None) -> Results:
    """Runs Algorithm 1 over all tasks of a data set: learn, evaluate, export, task by task.

    Args:
        config: The run.
        stages_dir: A store of stages to share with other runs; default one of its own. What stays in it when the run is
            complete makes damaged files again: the records of all stages, and the states after the last two.

    Raises:
        ArgumentError: Before any work, if something in `config` cannot be had.
    """
    this = Run.prepared(config)
    with output.prepared(config) as paths:
        return _run(this, paths, stages_dir or paths.stages)


def _run(this: Run, paths: RunPaths, stages_dir: Path) -> Results:
    config, results, stream = this.config, this.results, this.stream
    results.write(paths.results)
    with progress.RunProgress(stream) as display:
        display.say(chosen(this.choice))
        if not acceleration.computes_in(config.precision):
            display.say(f"this CPU has no instructions for --precision={config.precision}: expect float32 to be faster")
        store = StageStore(stages_dir, corruption.handler(config.on_corruption, display.say))
        with this.strategy.scope():
            approach = this.approach(paths.masks, observers(config, paths, display))

        def found(record: dict[str, Any]) -> None:
            display.say(f"task {record['task']}/{len(stream)}  {record['stage']}: found, not computed again")
            log(config, paths, stream[record["task"] - 1], record["stage"]).write(record["history"])

        for lesson in learn(this, approach, store, with_state=True, found=found):
            with results.timed("save"):
                save(this, paths, approach, stream[lesson - 1])
    if config.export and config.compact and isinstance(approach, PackNet):
        with results.timed("save"):
            export_report(approach.packed, paths.exports, seconds=LATENCY_SECONDS)
    tensorboard.log_hyperparameters(paths.tensorboard, results.to_json())
    Manifest(config.to_json(), checksums(paths.root, [*paths.made_of_stages(), paths.stages])).write(paths.manifest)
    results.complete = True  # said last, when everything else is written
    results.write(paths.results)
    return results


def chosen(choice: dict[str, Any]) -> str:
    """One line on what was chosen for this model and machine."""
    compiles = {
        "step": "XLA compiles whole gradient steps",
        "update": "XLA compiles masks and optimizer, oneDNN convolves",
        "off": "XLA is off",
    }[choice["xla"]]
    data = {"device": "training data on the device", "stream": "training data streamed"}
    device, replicas = choice["device"], choice["replicas"]
    devices = [f"{replicas} replicas"] * (replicas > 1) + [device] * (device != "CPU")
    return "; ".join([compiles, data[choice["data_residency"]], *devices])


def save(this: Run, paths: RunPaths, approach: Approach, task: Task) -> None:
    """Writes down everything that `task` added: results, owner maps, pack, SavedModel, TensorBoard."""
    results = this.results
    maps = {path: owner * ownership.visible(owner, task.number) for path, owner in approach.owner_maps().items()}
    save_owner_maps(paths.owner_maps(task.number), maps)
    approach.reset_for_saving()
    save_keras(approach.packed, paths.pack)
    if isinstance(approach, PackNet):
        save_for_use(this, paths, approach.packed, task)
    tensorboard.log_pack(paths.tensorboard, approach.packed, maps, results.to_json(), task.number)
    results.write(paths.results)


def save_for_use(this: Run, paths: RunPaths, packed: PackedModel, task: Task) -> None:
    """The pack in one file, and the SavedModel of `task`."""
    learned = this.stream[: task.number]
    accuracy = dict(zip((each.name for each in learned), this.results.accuracy[-1], strict=True))
    info = info_of(learned, this.config.dataset, accuracy, {"config": this.config.identity()})
    if not lifecycle.has_open_task(packed):  # else the run goes on with the next task, and writes it after that
        save_pack(packed, paths.pack_file, info=info, free_values=this.config.freed_weights == "keep")
    if this.config.export:
        export_task(
            packed,
            task.name,
            paths.export(task.number),
            compact=this.config.compact,
            class_names=task.class_names,
        )


def save_keras(packed: PackedModel, path: Path) -> None:
    """Writes `packed` as Keras does, atomically; of the same pack the same bytes, whenever that is."""
    with files.replacing(path) as temporary:
        as_it_comes = temporary.with_name("dated.keras")
        packed.save(as_it_comes)
        with zipfile.ZipFile(as_it_comes) as source, zipfile.ZipFile(temporary, "w") as target:
            for name in source.namelist():
                if name == "metadata.json":  # says when, which nobody reads; the file system knows
                    target.writestr(zipfile.ZipInfo(name), json.dumps({"keras_version": keras.__version__}))
                    continue
                with source.open(name) as content, target.open(zipfile.ZipInfo(name), "w", force_zip64=True) as copy:
                    shutil.copyfileobj(content, copy, 2**20)


def log(config: Config, paths: RunPaths, task: Task, stage: str) -> EpochLog:
    """The TensorBoard curves of a stage: day and night of a task on one axis."""
    first_epoch = 0 if stage == TRAIN else config.train_epochs
    return EpochLog(paths.tensorboard / f"task_{task.number}_{task.name}", first_epoch)


def observers(config: Config, paths: RunPaths, display: progress.RunProgress) -> Observers:
    """What watches every stage: the TensorBoard curves, the progress display, and signals that were lost."""

    def watch(task: Task, stage: str) -> list[keras.callbacks.Callback]:
        return [log(config, paths, task, stage), display.stage(task, stage), StopWhenInterrupted()]

    return watch
