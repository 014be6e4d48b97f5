"""Measures how often `packed.infer_task` is right, and what that costs in accuracy.

A pack learns five tasks; then the test examples of all tasks are predicted without telling it their task. Prints a
table in Markdown. With the options below it takes a few minutes on two cores.

    python docs/comparison/task_inference.py --dataset=mnist --scenario=split
    python docs/comparison/task_inference.py --dataset=mnist --scenario=permuted

With --pack, a pack that `tf-packnet run` has learned from the same tasks is measured. This run takes about ten minutes:

    tf-packnet run --dataset=cifar10 --model=docs/comparison/small_convnet.py:small_convnet --bias_policy=per_task \\
        --train_epochs=6 --retrain_epochs=6 --prune_rounds=3 --final_prune=0.5 --output_dir=out/cifar
    python docs/comparison/task_inference.py --dataset=cifar10 --pack=out/cifar/pack.packnet
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np

import tf_packnet as tp
from tf_packnet.packed.task_inference import calibrate, task_scores
from tf_packnet.packed.task_scores import METHODS

BATCHES = (1, 8, 32)  # examples of one task that are inferred together


def learned(stream: tp.tasks.TaskStream, epochs: int, rounds: int, final_prune: float) -> tp.PackedModel:
    """Learn all tasks in a network with two hidden layers of 256 units; record the calibration of each task."""
    shape = stream[0].splits["train"].images.shape[1:]
    hidden = [keras.layers.Dense(256, "relu") for _ in range(2)]
    layers = [keras.Input(shape), keras.layers.Flatten(), *hidden, keras.layers.Dense(stream[0].num_classes)]
    packed = tp.pack(keras.Sequential(layers), bias_policy="per_task")
    schedule = tp.EqualShare(final_prune, len(stream), rounds=rounds)
    for task in stream:
        packed.begin_task(task.name, num_classes=task.num_classes)
        packed.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        train = task.splits["train"]
        batches = tp.tasks.ResidentBatches(train.images, train.labels, train.scale, task.batch_size, seed=task.seed)
        packed.fit(batches, epochs=epochs, verbose=0)
        x, _ = examples(task, "validation")
        snapshot = tp.TaskMaskSnapshot(calibration=x)
        packed.fit(batches, epochs=epochs, verbose=0, callbacks=[tp.PruneRoundScheduler(schedule), snapshot])
    return packed


def loaded(path: str, stream: tp.tasks.TaskStream) -> tp.PackedModel:
    """Load a pack of these tasks, and record the calibration of each task."""
    packed = tp.load_pack(path)
    names = [task.name for task in stream]
    if packed.task_names != names:
        raise tp.ArgumentError("pack", f"a pack of the tasks {', '.join(names)}", packed.task_names)
    for task in stream:
        packed.select_task(task.name)
        calibrate(packed, examples(task, "validation")[0])
    return packed


def examples(task: tp.tasks.Task, split: str) -> tuple[np.ndarray, np.ndarray]:
    found = task.splits[split]
    return np.asarray(found.images, "float32") * found.scale, np.asarray(found.labels)


def accuracies(packed: tp.PackedModel, stream: tp.tasks.TaskStream, method: str) -> dict[str, float]:
    """Return the accuracy of the class if the task is known, and of task and class for each size of `BATCHES`."""
    known, right = [], {size: ([], []) for size in BATCHES}
    for number, task in enumerate(stream):
        x, y = examples(task, "test")
        _, scores, outputs = task_scores(packed, x, method, batch_size=1024)
        correct = np.stack([each.argmax(axis=1) == y for each in outputs], axis=1)
        known.append(correct[:, number].mean())
        for size, (of_task, of_class) in right.items():
            whole = len(x) // size * size
            best = scores[:whole].reshape(-1, size, len(outputs)).mean(axis=1).argmax(axis=1).repeat(size)
            of_task.append((best == number).mean())
            of_class.append(((best == number) & correct[:whole, number]).mean())
    found = {"known": float(np.mean(known))}
    for size, (of_task, of_class) in right.items():
        found |= {f"task {size}": float(np.mean(of_task)), f"class {size}": float(np.mean(of_class))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--scenario", default="split", choices=["split", "permuted", "rotated"])
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6, help="of training, and of retraining")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--final_prune", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pack", help="a .packnet file; nothing is learned")
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    stream = tp.tasks.load(options.dataset, num_tasks=options.tasks, scenario=options.scenario, seed=options.seed)
    if options.pack is None:
        packed = learned(stream, options.epochs, options.rounds, options.final_prune)
    else:
        packed = loaded(options.pack, stream)
    sizes = [f"{kind} ({size} together)" for size in BATCHES for kind in ("task", "task and class")]
    print("| score | calibrated | class, task known |", " | ".join(sizes), "|")
    print("|---|---|" + "---:|" * (1 + len(sizes)))
    calibration = dict(tp.lifecycle.records(packed).calibration)
    for method in METHODS:
        for calibrated in (False, True):
            tp.lifecycle.records(packed).calibration = calibration if calibrated else {}
            cells = [f"{value:.3f}" for value in accuracies(packed, stream, method).values()]
            print(f"| {method} | {'yes' if calibrated else 'no'} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
