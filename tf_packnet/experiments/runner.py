"""One run: learn a stream of tasks, one after another, and write down what came of it."""

import keras

from tf_packnet import files, tasks
from tf_packnet.approaches import PackNet
from tf_packnet.approaches.packnet import TRAIN, Observers
from tf_packnet.callbacks import EpochLog
from tf_packnet.experiments import output, setup
from tf_packnet.experiments.config import Config
from tf_packnet.experiments.paths import RunPaths
from tf_packnet.experiments.results import Results, environment
from tf_packnet.export import export_task
from tf_packnet.reporting import progress, summary, tensorboard
from tf_packnet.tasks import Task, TaskStream


def run(config: Config) -> Results:
    """Runs Algorithm 1 over all tasks of a data set: learn, evaluate, export, task by task.

    Raises:
        ArgumentError: Before any work, if something in `config` cannot be had.
    """
    strategy = setup.choose_strategy(config)
    xla = setup.choose_xla(config, strategy)
    setup.make_deterministic(config, xla)
    results = Results(config)
    with results.timed("load"):
        stream = load_stream(config)
    resident = setup.choose_residency(config, strategy, stream)
    paths = output.prepare(config)
    results.tasks = [describe(task) for task in stream]
    results.environment = {
        **environment(),
        "xla": xla,
        "data_residency": "device" if resident else "stream",
        "replicas": strategy.num_replicas_in_sync,
    }
    results.write(paths.results)

    with strategy.scope(), progress.RunProgress(stream, results.seconds) as display:
        display.say(chosen(results.environment))
        approach = setup.build_approach(config, stream, xla, resident, paths, observers(config, paths, display))
        for task in stream:
            approach.learn(task)
            with results.timed("evaluate"):
                record(results, approach, stream, task)
            with results.timed("save"):
                save(config, paths, results, approach, task)
    tensorboard.log_hyperparameters(paths.tensorboard, results.to_json())
    results.complete = True  # said last, when everything else is written
    results.write(paths.results)
    return results


def load_stream(config: Config) -> TaskStream:
    """The tasks of a config."""
    return tasks.load(
        config.dataset,
        classes_per_task=config.classes_per_task,
        num_tasks=config.num_tasks,
        data_dir=config.data_dir,
        validation_fraction=config.validation_fraction,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def chosen(environment: dict) -> str:
    """One line on what was chosen for this model and machine."""
    compiles = {
        "step": "XLA compiles whole gradient steps",
        "update": "XLA compiles masks and optimizer, oneDNN convolves",
        "off": "XLA is off",
    }[environment["xla"]]
    data = {"device": "training data on the device", "stream": "training data streamed"}
    replicas = environment["replicas"]
    devices = f"; {replicas} replicas" if replicas > 1 else ""
    return f"{compiles}; {data[environment['data_residency']]}{devices}"


def describe(task: Task) -> dict:
    """What `results.json` says of a task."""
    examples = {split: len(data) for split, data in task.splits.items()}
    return {"number": task.number, "name": task.name, "class_names": list(task.class_names), "examples": examples}


def record(results: Results, approach: PackNet, stream: TaskStream, task: Task) -> None:
    """Notes what the network can do, and what room it has, after learning `task`."""
    learned = stream[: task.number]
    results.accuracy.append([approach.accuracy(earlier) for earlier in learned])
    if all(len(earlier.splits["validation"]) for earlier in learned):
        results.validation_accuracy.append([approach.accuracy(earlier, "validation") for earlier in learned])
    results.free_fraction.append(approach.packed.free_fraction())
    results.weights = summary.count_weights(approach.packed.owner_maps(), task.number)


def save(config: Config, paths: RunPaths, results: Results, approach: PackNet, task: Task) -> None:
    """Writes down everything that `task` added: results, pack, SavedModel, TensorBoard."""
    with files.replacing(paths.pack) as temporary:
        approach.packed.save(temporary)
    if config.export:
        export_task(approach.packed, task.name, paths.export(task.number))
    tensorboard.log_pack(paths.tensorboard, approach.packed.owner_maps(), results.to_json(), task.number)
    results.write(paths.results)


def observers(config: Config, paths: RunPaths, display: progress.RunProgress) -> Observers:
    """What watches every stage: the TensorBoard curves and the progress display."""

    def watch(task: Task, stage: str) -> list[keras.callbacks.Callback]:
        first_epoch = 0 if stage == TRAIN else config.train_epochs
        curves = EpochLog(paths.tensorboard / f"task_{task.number}_{task.name}", first_epoch)
        return [curves, display.stage(task, stage)]

    return watch
