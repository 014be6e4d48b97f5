"""Compares the files of one task with its part of the pack: `python -m launch.benchmarks.small_exports`.

The weights are random, and the task keeps the largest ones of each kernel. `--networks=vit_86m` measures a vision
transformer with 86 million weights; it takes minutes and 6 GB of memory.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

from absl import app, flags, logging

NAMES = ("vit", "text", "decoder", "embedding", "video", "own", "mobilenet_v2", "vit_86m")
NETWORKS = flags.DEFINE_list("networks", ",".join(NAMES[:-1]), f"Networks to measure, of {', '.join(NAMES)}.")
DENSITY = flags.DEFINE_float("density", 0.054, "Fraction of the prunable weights that the task keeps.", 0, 1)
SECONDS = flags.DEFINE_float("seconds", 2.0, "Approximate time to measure the latency of each pair of files.", 0)
flags.register_validator("networks", lambda names: set(names) <= {*NAMES}, f"expected some of {', '.join(NAMES)}")


def main(argv: list[str]) -> None:
    """Print a row of a Markdown table for each network."""
    del argv
    logging.set_verbosity(logging.WARNING)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    print(
        "| network | weights | pack part | SavedModel dense | its graph | compact | `.keras` | LiteRT dense |", end=""
    )
    print(" compact | gzip | loading | time, batch 1 | batch 8 | LiteRT |")
    print("|---" * 14 + "|")
    for name in NETWORKS.value:
        print(f"| {name} | {' | '.join(measured(name))} |", flush=True)


def measured(name: str) -> list[str]:
    """Return the cells of a row."""
    import gzip

    import keras

    import tf_packnet as tp
    from launch.benchmarks.architectures import networks
    from tf_packnet.errors import ArgumentError
    from tf_packnet.export.report import folder_bytes, latency_ratios
    from tf_packnet.packfile.container import pack_part
    from tf_packnet.packfile.parts import arrays_of

    keras.utils.set_random_seed(0)
    packed = packed_task(networks()[name](), DENSITY.value)
    part = next(len(pack_part(*each)[1]) for each in arrays_of(packed, free_values=False) if each[0] == "task 1")
    with tempfile.TemporaryDirectory() as folder:
        dense, compact, file = Path(folder, "dense"), Path(folder, "compact"), Path(folder, "task.keras")
        tp.export_task(packed, 1, dense)
        tp.export_task(packed, 1, compact, compact=True)
        tp.export_task(packed, 1, file, format="keras", compact=True)
        graph = folder_bytes(dense) - folder_bytes(dense / "variables")
        sizes = [part, folder_bytes(dense), graph, folder_bytes(compact), file.stat().st_size]
        lite: list[str] = ["-"] * 4
        try:
            for kind in ("dense", "compact"):
                lite_file = Path(folder, f"{kind}.tflite")
                tp.export_task(packed, 1, lite_file, format="tflite", compact=kind == "compact")
        except ArgumentError:  # LiteRT has no operations for the network
            pass
        else:
            paths = [Path(folder, f"{kind}.tflite") for kind in ("dense", "compact")]
            lite = [kilobytes(path.stat().st_size) for path in paths]
            lite += [kilobytes(len(gzip.compress(paths[1].read_bytes()))), f"{lite_ratio(paths):.2f}"]
        model = tp.dense_model(packed, 1)
        del packed
        loading = seconds(compact) - seconds(dense)
        ratios = latency_ratios(compact, dense, model, (1, 8), SECONDS.value)
    return [
        f"{model.count_params():,}",
        *map(kilobytes, sizes),
        *lite[:3],
        f"{1000 * loading:+.0f} ms",
        *(f"{ratio:.2f}" for ratio in ratios.values()),
        lite[3],
    ]


def packed_task(model: Any, density: float) -> Any:
    """Return a pack whose only task keeps the largest of random weights."""
    import numpy as np

    import tf_packnet as tp
    from tf_packnet import lifecycle

    rng = np.random.default_rng(0)
    packed = tp.pack(model)
    packed.begin_task("task")
    for weight in lifecycle.masked_weights(packed).values():
        values = rng.normal(0, 0.05, weight.owner_map().shape).astype("float32")
        weight.variable.assign(values)
        weight.prune(np.abs(values) >= np.quantile(np.abs(values), 1 - density))
    packed.commit_task()
    return packed


def seconds(path: Path) -> float:
    """Return the shortest of three measured times for loading a SavedModel, in seconds."""
    import tensorflow as tf

    times = []
    for _ in range(3):
        start = time.perf_counter()
        tf.saved_model.load(str(path))
        times.append(time.perf_counter() - start)
    return min(times)


def lite_ratio(paths: list[Path]) -> float:
    """Return the median time of a call of the second LiteRT file, divided by that of the first one."""
    import warnings

    import numpy as np
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow says where the interpreter will move to
        interpreters = [tf.lite.Interpreter(str(path), num_threads=2) for path in paths]
    for each in interpreters:
        each.allocate_tensors()
        for details in each.get_input_details():
            each.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    times: list[list[float]] = [[], []]
    until = time.perf_counter() + SECONDS.value
    while len(times[0]) < 3 or time.perf_counter() < until:
        for each, durations in zip(interpreters, times, strict=True):
            start = time.perf_counter()
            each.invoke()
            durations.append(time.perf_counter() - start)
    dense, compact = (float(np.median(durations[1:])) for durations in times)  # the first call expands the weights
    return compact / dense


def kilobytes(count: int) -> str:
    """Return a size in kB, or in MB from 10 MB on."""
    return f"{count / 1e3:,.0f} kB" if count < 1e7 else f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    app.run(main)
