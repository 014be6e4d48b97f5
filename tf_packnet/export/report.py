"""Compares exported compact tasks with the same tasks stored with dense kernels."""

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
from tf_packnet.export.compaction.sparse import sparse_arrays
from tf_packnet.export.dense import dense_model
from tf_packnet.export.saved_model import write_saved_model
from tf_packnet.packed_model import PackedModel
from tf_packnet.structure.steps import Graph, inputs_of, trace
from tf_packnet.system import files

_BATCH_SIZES = (1, 256)


@dataclass(frozen=True)
class TaskExport:
    """Measurements of an exported task and of its dense model; pairs are `(dense, exported)`.

    Attributes:
        task: Number of the task (1-based).
        name: Name of the task.
        weights: Numbers of stored weight values. Zeros that are not stored do not count.
        bytes: Sizes of the SavedModels in bytes.
        gzip_bytes: Sizes with each file compressed with gzip, in bytes.
        flops: Floating point operations per example in Dense layers and convolutions.
        latency: Time of a call divided by that of the dense model, by batch size; empty if not measured.
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
        """Size of the dense SavedModel divided by that of the exported one."""
        return self.bytes[0] / self.bytes[1]

    def to_json(self) -> dict[str, Any]:
        """Return all measurements as JSON values, with `times_smaller`."""
        names = ("weights", "bytes", "gzip_bytes", "flops")
        pairs = {name: dict(zip(("dense", "exported"), getattr(self, name), strict=True)) for name in names}
        latency = {str(batch): round(ratio, 3) for batch, ratio in self.latency.items()}
        return {**asdict(self), **pairs, "latency": latency, "times_smaller": round(self.times_smaller, 2)}


def export_report(packed: PackedModel, folder: str | os.PathLike, seconds: float = 0.4) -> list[TaskExport]:
    """Compare `folder/task_<k>`, the compact SavedModel of each committed task, with its dense model.

    Args:
        packed: The pack that the tasks were exported from.
        folder: The folder of the SavedModels, to which `report.json` is written.
        seconds: Approximate time of each latency measurement (per task and batch size); 0 skips them.

    Returns:
        One entry per committed task.

    Raises:
        ArgumentError: If `folder` lacks the SavedModel of a task.
    """
    folder = Path(folder)
    names = packed.task_names[: packed.committed_tasks]
    for number in range(1, len(names) + 1):
        if not (folder / f"task_{number}" / "saved_model.pb").exists():
            raise ArgumentError("folder", f"a folder that contains the SavedModel task_{number}", str(folder))
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
            latency=latency_ratios(exported, before, dense, _BATCH_SIZES, seconds) if seconds else {},
        )


def stored_weights(model: keras.Model) -> int:
    """Count the stored weight values: only the nonzero ones of weights that are stored without zeros."""
    sparse = sparse_arrays(model)
    return sum(sparse[id(v)].count if id(v) in sparse else int(np.prod(v.shape)) for v in model.weights)


def flops(model: keras.Model) -> int:
    """Count the floating point operations per example in Dense layers and convolutions: two per multiply-add.

    An axis of unknown length counts as one position.
    """
    graph = trace(model)
    return sum(2 * _products(graph, step.layer, step.outputs[0]) for step in graph.steps)


def _products(graph: Graph, layer: Any, output: int) -> int:
    names = ("kernel", "depthwise_kernel", "pointwise_kernel")
    kernels = [getattr(layer, name, None) for name in names]
    size = sum(int(np.prod(kernel.shape)) for kernel in kernels if kernel is not None)
    return size * int(np.prod([length or 1 for length in graph.shape(output)[1:-1]]))


def folder_bytes(folder: Path, compressed: bool = False) -> int:
    """Add up the sizes of the files in a folder, each optionally compressed with gzip."""
    contents = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return sum(len(gzip.compress(content)) if compressed else len(content) for content in contents)


def latency_ratios(
    path: str | os.PathLike,
    baseline: str | os.PathLike,
    model: keras.Model,
    batches: Sequence[int],
    seconds: float = 0.4,
) -> dict[int, float]:
    """Measure the median ratio of the call times of `path` and `baseline`, called alternately on random examples.

    Args:
        path: A SavedModel folder.
        baseline: Another SavedModel folder with the same inputs.
        model: A model with the same inputs.
        batches: Batch sizes, each measured separately.
        seconds: Approximate time to measure each; both are called at least once.

    Returns:
        The ratio by batch size.
    """
    models = [tf.saved_model.load(os.fspath(folder)) for folder in (path, baseline)]  # keeps the weights alive
    measured, reference = (loaded.serve for loaded in models)
    return {batch: _ratio(measured, reference, model, batch, seconds) for batch in batches}


def _ratio(measured: Any, reference: Any, model: keras.Model, batch: int, seconds: float) -> float:
    examples = keras.tree.map_structure(lambda tensor: _random(tensor, batch), inputs_of(model))
    measured(examples), reference(examples)  # the first call prepares the graph
    ratios: list[float] = []
    until = time.perf_counter() + seconds
    while not ratios or time.perf_counter() < until:
        # The second call finds warm caches, so the order alternates.
        pair = [measured, reference] if len(ratios) % 2 else [reference, measured]
        durations = {serve: _seconds(serve, examples) for serve in pair}
        ratios.append(durations[measured] / durations[reference])
    return float(np.median(ratios))


def _seconds(serve: Any, examples: Any) -> float:
    start = time.perf_counter()
    serve(examples)
    return time.perf_counter() - start


def _random(tensor: Any, batch: int) -> tf.Tensor:
    shape = [batch, *(size or 16 for size in tensor.shape[1:])]
    if tf.as_dtype(tensor.dtype).is_floating:
        return tf.random.uniform(shape, dtype=tensor.dtype)
    return tf.zeros(shape, tensor.dtype)
