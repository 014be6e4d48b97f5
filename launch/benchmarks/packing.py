"""Measures what packing costs: `python -m launch.benchmarks.packing`.

Times training steps of packed networks and of the plain Keras models that they were made from, in alternation, with
Adam. `--networks=vit_86m` measures a vision transformer with 86 million weights, with a prune round and the export of a
task; it takes 10 minutes and 8 GB of memory.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

from absl import app, flags, logging

BATCH_SIZES = {"mobilenet_v2": 32, "efficientnet_b0": 32, "resnet50": 16, "decoder": 32, "vit": 32, "vit_86m": 4}
NETWORKS = flags.DEFINE_list(
    "networks", ",".join(list(BATCH_SIZES)[:-1]), f"Networks to measure, of {', '.join(BATCH_SIZES)}."
)
ROUNDS = flags.DEFINE_integer("rounds", 7, "How often the models take turns.", 1)
STEPS = flags.DEFINE_integer("steps", 4, "Gradient steps in each turn; the first is not counted.", 2)
flags.register_validator("networks", lambda names: set(names) <= {*BATCH_SIZES}, f"expected some of {BATCH_SIZES}")


def main(argv: list[str]) -> None:
    """Print a row of a Markdown table for each network."""
    del argv
    logging.set_verbosity(logging.WARNING)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    print("| network | weights | batch | plain, ms | packed, ms | ratio | bytes per weight at rest | in training |")
    print("|---" * 8 + "|")
    for name in NETWORKS.value:
        print(f"| {name} | {' | '.join(measured(name))} |", flush=True)
        if name == "vit_86m":
            print(f"\n{rounds_and_exports(name)}\n", flush=True)


def made(name: str) -> Any:
    """Return the network."""
    import keras

    from launch.benchmarks.architectures import networks

    keras.utils.set_random_seed(0)
    return networks()[name]()


def measured(name: str) -> list[str]:
    """Return the cells of a row."""
    import numpy as np
    import tensorflow as tf

    import tf_packnet as tp
    from tf_packnet.training.acceleration import gpus, is_convolutional

    plain = made(name)
    packed = tp.pack(plain)
    packed.begin_task("task")
    size = BATCH_SIZES[name]
    rng = np.random.default_rng(0)
    shape = (size, *plain.input_shape[1:])
    is_text = plain.inputs[0].dtype == "int32"
    x = rng.integers(0, 4000, shape).astype("int32") if is_text else rng.normal(size=shape).astype("float32")
    data = tf.data.Dataset.from_tensors((x, rng.integers(0, 2, size))).cache().repeat()
    # Keras compiles with XLA by default, which is slower than TensorFlow's own kernels for convolutions on CPU.
    models = {} if is_convolutional(plain) and not gpus() else {"xla": made(name)}
    models |= {"plain": plain, "packed": packed}
    for kind, model in models.items():
        compile_model(model, **({} if kind == "packed" else {"jit_compile": kind == "xla"}))
    times: dict[str, list[float]] = {kind: [] for kind in models}
    for turn in range(ROUNDS.value + 1):
        for kind, model in models.items():
            steps = step_times(model, data)
            times[kind] += steps[1:] if turn else []
    medians = {kind: statistics.median(each) for kind, each in times.items()}
    best = min(seconds for kind, seconds in medians.items() if kind != "packed")
    weights = plain.count_params()
    at_rest = sum(variable_bytes(variable) for variable in packed.variables)
    slots = sum(variable_bytes(variable) for variable in packed.optimizer.variables)
    return [
        f"{weights:,}",
        str(size),
        f"{1000 * best:.1f}",
        f"{1000 * medians['packed']:.1f}",
        f"{medians['packed'] / best:.2f}",
        f"{at_rest / weights:.1f}",
        f"{(at_rest + slots) / weights:.1f}",
    ]


def variable_bytes(variable: Any) -> int:
    """Return the size of the values of a variable."""
    import numpy as np

    return np.asarray(variable).nbytes


def compile_model(model: Any, **options: Any) -> None:
    """Compile a model with Adam."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss, **options)


def step_times(model: Any, data: Any) -> list[float]:
    """Return the time of each of `--steps` gradient steps in a `fit`, in seconds."""
    import keras

    class Clock(keras.callbacks.Callback):
        """Records when each step ends."""

        def __init__(self) -> None:
            super().__init__()
            self.ends = [time.perf_counter()]

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.ends.append(time.perf_counter())

    clock = Clock()
    model.fit(data, steps_per_epoch=STEPS.value, shuffle=False, verbose=0, callbacks=[clock])
    return [end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False)]


def rounds_and_exports(name: str) -> str:
    """Measure a prune round, a commit, and the files of the task; return a sentence."""
    import tf_packnet as tp
    from launch.benchmarks.rounds import PeakMemory
    from tf_packnet import lifecycle

    packed = tp.pack(made(name))
    compile_model(packed)
    packed.begin_task("task")
    packed.optimizer.build(packed.trainable_variables)
    rounds = tp.PruneRoundScheduler(tp.EqualShare(0.946, 1, rounds=1))
    rounds.set_model(packed)
    rounds.set_params({"epochs": 1})
    rounds.on_train_begin()
    with PeakMemory() as prune:
        rounds.on_epoch_begin(0)
        rounds.on_train_batch_begin(0)
    with PeakMemory() as commit:
        packed.commit_task()
    with tempfile.TemporaryDirectory() as folder:
        with PeakMemory() as save:
            tp.save_pack(packed, Path(folder, "task.packnet"))
        with PeakMemory() as export:
            tp.export_task(packed, 1, Path(folder, "task"), compact=True)
    kept = sum(int((owners == 1).sum()) for owners in lifecycle.owner_maps(packed).values())
    parts = {"prune round": prune, "commit": commit, "pack file": save, "compact SavedModel": export}
    text = ", ".join(f"{part} {each.seconds:.1f} s (+{each.extra / 1e6:.0f} MB)" for part, each in parts.items())
    return f"{name}, {kept:,} weights kept: {text}."


if __name__ == "__main__":
    app.run(main)
