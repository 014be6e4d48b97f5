"""What compaction saves, task by task."""

import gzip
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet.errors import ArgumentError
from tf_packnet.export.compaction import compact_model
from tf_packnet.export.compaction.graph import Graph, inputs_of, trace
from tf_packnet.export.dense import dense_model
from tf_packnet.export.saved_model import write_saved_model
from tf_packnet.packed_model import PackedModel
from tf_packnet.system import files

BATCHES = (1, 256)


@dataclass(frozen=True)
class TaskExport:
    """An exported task beside the same task with dense kernels.

    Attributes:
        task: Its number, 1-based.
        name: Its name.
        weights: Values of weights that are stored: `(dense, exported)`.
        bytes: Bytes of the SavedModel's files.
        gzip_bytes: The same, each file compressed with gzip.
        flops: Floating point operations an example in Dense layers and convolutions.
        latency: Time of a call beside the dense model's, by batch size; empty if it was not measured.
    """

    task: int
    name: str
    weights: tuple[int, int]
    bytes: tuple[int, int]
    gzip_bytes: tuple[int, int]
    flops: tuple[int, int]
    latency: dict[int, float]

    @property
    def times_smaller(self) -> float:
        """How many times fewer bytes the files have."""
        return self.bytes[0] / self.bytes[1]

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with what follows from them."""
        names = ("weights", "bytes", "gzip_bytes", "flops")
        pairs = {name: dict(zip(("dense", "exported"), getattr(self, name), strict=True)) for name in names}
        latency = {str(batch): round(ratio, 3) for batch, ratio in self.latency.items()}
        return {**asdict(self), **pairs, "latency": latency, "times_smaller": round(self.times_smaller, 2)}


def export_report(packed: PackedModel, folder: str | os.PathLike, seconds: float = 0.4) -> list[TaskExport]:
    """Compares `folder/task_<k>`, the compact SavedModel of every committed task, with the dense one.

    Args:
        packed: The pack that the tasks were exported from.
        folder: Where the SavedModels are, and `report.json` is written.
        seconds: How long to measure the latency at each batch size, about; 0 leaves it out.

    Raises:
        ArgumentError: If a task has no SavedModel there.
    """
    folder = Path(folder)
    names = packed.task_names[: packed.committed_tasks]
    for number in range(1, len(names) + 1):
        if not (folder / f"task_{number}" / "saved_model.pb").exists():
            raise ArgumentError("folder", f"a folder with a SavedModel task_{number}", str(folder))
    rows = [_compare(packed, number, name, folder, seconds) for number, name in enumerate(names, start=1)]
    files.write_json(folder / "report.json", {"tasks": [row.to_json() for row in rows]})
    return rows


def _compare(packed: PackedModel, number: int, name: str, folder: Path, seconds: float) -> TaskExport:
    dense = dense_model(packed, number)
    compact, exported = compact_model(dense), folder / f"task_{number}"
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "dense"
        write_saved_model(dense, before)
        return TaskExport(
            task=number,
            name=name,
            weights=(stored_weights(dense), stored_weights(compact)),
            bytes=(folder_bytes(before), folder_bytes(exported)),
            gzip_bytes=(folder_bytes(before, compressed=True), folder_bytes(exported, compressed=True)),
            flops=(flops(dense), flops(compact)),
            latency=latency_ratios(exported, before, dense, BATCHES, seconds) if seconds else {},
        )


def stored_weights(model: keras.Model) -> int:
    """How many values of weights are stored: of a sparse kernel its entries, without where they stand."""
    return sum(int(np.prod(v.shape)) for v in model.weights if not v.dtype.startswith("uint"))


def flops(model: keras.Model) -> int:
    """Floating point operations an example in Dense layers and convolutions, two a product; positions of no known
    number count as one."""
    graph = trace(model)
    return sum(2 * _products(graph, step.layer, step.outputs[0]) for step in graph.steps)


def _products(graph: Graph, layer: Any, output: int) -> int:
    names = ("kernel", "depthwise_kernel", "pointwise_kernel")
    kernels = [getattr(layer, name, None) for name in names]
    size = sum(int(np.prod(kernel.shape)) for kernel in kernels if kernel is not None)
    return size * int(np.prod([length or 1 for length in graph.shape(output)[1:-1]]))


def folder_bytes(folder: Path, compressed: bool = False) -> int:
    """Bytes of the files in a folder, as they are or compressed one by one."""
    contents = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return sum(len(gzip.compress(content)) if compressed else len(content) for content in contents)


def latency_ratios(
    path: str | os.PathLike,
    baseline: str | os.PathLike,
    model: keras.Model,
    batches: Sequence[int],
    seconds: float = 0.4,
) -> dict[int, float]:
    """Median of the ratios of the time that `path` and `baseline` take, called in turns on random examples.

    Args:
        path: A SavedModel folder.
        baseline: Another one, of the same inputs.
        model: A model of the same inputs.
        batches: Examples in a call, one measurement each.
        seconds: About how long to measure each; at least one call of both.

    Returns:
        The ratio by batch size.
    """
    loaded = [tf.saved_model.load(os.fspath(each)) for each in (path, baseline)]  # which hold the weights
    ours, theirs = (each.serve for each in loaded)
    return {batch: _ratio(ours, theirs, model, batch, seconds) for batch in batches}


def _ratio(ours: Any, theirs: Any, model: keras.Model, batch: int, seconds: float) -> float:
    examples = keras.tree.map_structure(lambda tensor: _random(tensor, batch), inputs_of(model))
    ours(examples), theirs(examples)  # the first call plans
    ratios: list[float] = []
    until = time.perf_counter() + seconds
    while not ratios or time.perf_counter() < until:
        # Who comes second finds warm caches: they take turns in that, too.
        pair = [ours, theirs] if len(ratios) % 2 else [theirs, ours]
        took = {serve: _seconds(serve, examples) for serve in pair}
        ratios.append(took[ours] / took[theirs])
    return float(np.median(ratios))


def _seconds(serve: Any, examples: Any) -> float:
    began = time.perf_counter()
    serve(examples)
    return time.perf_counter() - began


def _random(tensor: Any, batch: int) -> tf.Tensor:
    shape = [batch, *(size or 16 for size in tensor.shape[1:])]
    if tf.as_dtype(tensor.dtype).is_floating:
        return tf.random.uniform(shape, dtype=tensor.dtype)
    return tf.zeros(shape, tensor.dtype)
