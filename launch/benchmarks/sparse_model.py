"""Prunes a small CNN and measures its exported files: `python -m launch.benchmarks.sparse_model`.

The network, the epochs and the schedule are those of TF-MOT's tutorial "Pruning in Keras example". ONNX and OpenVINO
are measured if `onnx`, `tf2onnx`, `onnxruntime` and `openvino` are installed.
"""

import gzip
import importlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
from absl import app, flags, logging

DATASET = flags.DEFINE_string("sparse_dataset", "mnist", "Data set of 10 classes: mnist or digits.")
PATTERN = flags.DEFINE_string("sparse_pattern", None, "Pattern of the pruned weights, such as 2:4 or 4x1.")
SPARSITY = flags.DEFINE_float("sparsity", 0.8, "Fraction of the weights that is pruned.", 0, 1)


def main(argv: list[str]) -> None:
    """Print a Markdown table: a row for each file, of the model as trained and of the pruned one."""
    del argv
    logging.set_verbosity(logging.ERROR)
    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    warnings.simplefilter("ignore")  # of Keras and LiteRT
    import keras

    import tf_packnet as tp

    keras.utils.set_random_seed(0)
    task = tp.tasks.load(DATASET.value, classes_per_task=10)[0]
    train, test = task.splits["train"], task.splits["test"]
    model = network(train.x.shape[1:], epochs=4, train=train)
    sparse = pruned(model, train)
    print("| file | as trained: bytes | gzip | accuracy | pruned: bytes | gzip | accuracy |")
    print("|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, kind) for kind in ("trained", "pruned")]
        for each in folders:
            each.mkdir()
        columns = [files(model, folders[0], train, compact=False), files(sparse, folders[1], train, compact=True)]
        for (name, trained), (_, small) in zip(*columns, strict=True):
            cells = (f"{size:,} | {zipped:,} | {measure(test):.4f}" for size, zipped, measure in (trained, small))
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def network(shape: tuple[int, ...], epochs: int, train: Any) -> Any:
    """Return the trained network of the tutorial."""
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(shape, name="image"),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, name="digit"),
        ]
    )
    compile_and_fit(model, train, epochs, batch_size=32)
    return model


def compile_and_fit(model: Any, train: Any, epochs: int, batch_size: int, **arguments: Any) -> None:
    """Train a model."""
    import keras

    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(train.x, train.y, batch_size=batch_size, epochs=epochs, verbose=0, **arguments)


def pruned(model: Any, train: Any) -> Any:
    """Return a sparsified model, pruned for two epochs."""
    import tf_packnet as tp
    from tf_packnet.pruning.tfmot import PolynomialDecay

    end = -(-len(train) // 128) * 2
    schedule = PolynomialDecay(0.5, SPARSITY.value, begin_step=0, end_step=end, frequency=end // 8)
    sparse = tp.sparsify(model)
    callback = tp.PruneStepScheduler(schedule, PATTERN.value)
    compile_and_fit(sparse, train, 2, batch_size=128, callbacks=[callback])
    return sparse


Measure = Callable[[Any], float]


def files(model: Any, folder: Path, train: Any, compact: bool) -> Iterator[tuple[str, tuple[int, int, Measure]]]:
    """Yield for each file its name, size, size after gzip, and a function that measures its accuracy."""
    import keras
    import tensorflow as tf

    import tf_packnet as tp

    def exported(name: str, **options: Any) -> Path:
        path = folder / name
        tp.export_model(model, path, compact=compact, **options)
        return path

    path = exported("model.keras")
    yield "`.keras`", (*sizes(path), accuracy(keras.models.load_model(path)))
    path = exported("folder")
    loaded = tf.saved_model.load(path)
    yield "SavedModel", (*sizes(path), accuracy(loaded.serve))
    for format in ("tflite", "tflite_float16", "tflite_int8"):
        calibration = train.x[:200] if format == "tflite_int8" else None
        path = exported(f"{format}.tflite", format=format, calibration=calibration)
        yield f"`{format}`", (*sizes(path), accuracy(lite(path)))
    for mode in ("int8", "int4"):
        plain = tp.strip_pruning(model if compact else tp.sparsify(model))  # without the optimizer
        plain.quantize(mode)
        path = folder / f"{mode}.keras"
        plain.save(path)
        yield f"`.keras`, `quantize('{mode}')`", (*sizes(path), accuracy(keras.models.load_model(path)))
    if all(map(find_spec, ("onnx", "tf2onnx", "onnxruntime"))):
        path = exported("model.onnx")
        yield "ONNX, onnxruntime", (*sizes(path), accuracy(onnx(path)))
        if find_spec("openvino"):
            yield "ONNX, OpenVINO", (*sizes(path), accuracy(openvino(path)))


def sizes(path: Path) -> tuple[int, int]:
    """Return the bytes of a file, or of all files in a folder, and of their gzip-compressed contents."""
    contents = [each.read_bytes() for each in ([path] if path.is_file() else sorted(path.rglob("*"))) if each.is_file()]
    return sum(map(len, contents)), sum(len(gzip.compress(each)) for each in contents)


def accuracy(predict: Callable[[Any], Any]) -> Measure:
    """Return a function that measures the accuracy of `predict` on a split."""
    return lambda split: float((np.asarray(predict(split.x)).argmax(axis=1) == split.y).mean())


def lite(path: Path) -> Callable[[Any], Any]:
    """Return the predictions of a LiteRT file."""
    import tensorflow as tf

    runner = tf.lite.Interpreter(str(path)).get_signature_runner()
    return lambda x: runner(image=x)["digit"]


def onnx(path: Path) -> Callable[[Any], Any]:
    """Return the predictions of an ONNX file with onnxruntime."""
    session = importlib.import_module("onnxruntime").InferenceSession(path)
    return lambda x: session.run(["digit"], {"image": x})[0]


def openvino(path: Path) -> Callable[[Any], Any]:
    """Return the predictions of an ONNX file with OpenVINO."""
    model = importlib.import_module("openvino").compile_model(path)
    return lambda x: model([x])["digit"]


if __name__ == "__main__":
    app.run(main)
