"""Writes the contents of a pack as one self-contained HTML page: no scripts, no other files, no network."""

import base64
import io
import os
from collections.abc import Mapping
from typing import Any

import matplotlib.colors
import numpy as np
from PIL import Image

from tf_packnet import lifecycle
from tf_packnet.inspection import pixels
from tf_packnet.inspection.contents import Inspection, LayerFacts
from tf_packnet.inspection.palette import rgb, task_colours
from tf_packnet.inspection.tables import NO_RATE, score, shown_tasks, size
from tf_packnet.inspection.template import PAGE
from tf_packnet.packed_model import PackedModel
from tf_packnet.system import files
from tf_packnet.text import printable_lines

# With more tasks than these, a colour scale replaces the legend, and images replace histograms and the accuracy table.
_MAX_SWATCHES, _MAX_HISTOGRAMS, _MAX_TABLE = 12, 24, 30
# With more kernels than this, only the first and the largest ones are drawn.
_MAX_MAPS = 24
# Largest number of cells per axis of an owner map: a few screen pixels per cell, so that single weights are visible.
_MAX_CELLS = 192
_STRIP_CELLS = 1000
_ENLARGED = 0.1  # if a smaller fraction of a layer is owned, the owned part is also drawn enlarged


def write(path: str | os.PathLike, packed: PackedModel, inspection: Inspection) -> None:
    """Write the page, atomically.

    Args:
        path: The file to write.
        packed: The pack.
        inspection: The return value of `inspect_pack`.
    """
    content = printable_lines(render(packed, inspection))
    with files.replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def render(packed: PackedModel, inspection: Inspection) -> str:
    """Return the page as HTML."""
    maps = packed.owner_maps()
    colours = task_colours(len(inspection.tasks))
    text, code = advice(inspection)
    return PAGE.render(
        title=f"Contents of {inspection.file or inspection.model}",
        lead=_lead(inspection),
        no_rate=NO_RATE,
        inspection=inspection,
        tasks=inspection.tasks,
        known=inspection.known(),
        score=score,
        colours=[matplotlib.colors.to_hex(colour) for colour in colours],
        scale=_owners(pixels.strip([0, *[1] * len(inspection.tasks)], 254), colours),
        max_swatches=_MAX_SWATCHES,
        shown=shown_tasks(len(inspection.tasks)),
        strips=[_strip(layer, colours) for layer in inspection.layers],
        advice=text,
        code=code,
        about=_about(inspection),
        **_accuracy(inspection),
        **_maps(inspection, maps, colours),
        **_histograms(packed, inspection, maps, colours),
        **_filters(packed, maps),
    )


def _lead(inspection: Inspection) -> str:
    count = len(inspection.tasks)
    tasks = "No task owns any" if not count else f"{count} task{'s own' if count > 1 else ' owns'}"
    owned = "" if not count else f" {1 - inspection.free / inspection.weights:.1%}"
    layers = f"{len(inspection.layers)} kernel{'s' if len(inspection.layers) > 1 else ''}"
    return f"{tasks}{owned} of the {inspection.weights:,} weights of {layers} in model {inspection.model}."


def _strip(layer: LayerFacts, colours: np.ndarray) -> dict[str, Any]:
    counts = [layer.free, *layer.owned]
    owned = sum(layer.owned)
    least, most = min(layer.owned, default=0), max(layer.owned, default=0)
    enlarged = 0 < owned < _ENLARGED * layer.weights
    return {
        "path": layer.path,
        "shape": _times(layer.shape),
        "free": f"{layer.free / layer.weights:.1%}",
        "alt": f"{layer.path}: {layer.free / layer.weights:.1%} free; each task owns {least:,} to {most:,} weights",
        "whole": _owners(pixels.strip(counts, _STRIP_CELLS), colours),
        "owned": _owners(pixels.strip([0, *layer.owned], _STRIP_CELLS), colours) if enlarged else None,
    }


def _accuracy(inspection: Inspection) -> dict[str, Any]:
    if not inspection.accuracy:
        return {}
    scores = np.full((len(inspection.accuracy),) * 2, np.nan)
    for index, row in enumerate(inspection.accuracy):
        scores[index, : len(row)] = row
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    ends = {"lowest": f"{low:.4f}", "highest": f"{high:.4f}"}
    colours = pixels.heat(scores, min(low, high - 0.05), high)
    if len(scores) > _MAX_TABLE:
        return {"matrix_picture": _png(Image.fromarray(colours)), **ends}
    cells = [
        [
            {
                "text": f"{value:.3f}",
                "colour": "#{:02x}{:02x}{:02x}".format(*colour),
                "ink": "#000" if pixels.is_light(colour) else "#fff",
            }
            for value, colour in zip(row, colours[index], strict=False)
        ]
        for index, row in enumerate(inspection.accuracy)
    ]
    return {"matrix": cells, **ends}


def _maps(inspection: Inspection, maps: Mapping[str, np.ndarray], colours: np.ndarray) -> dict[str, Any]:
    largest = sorted(inspection.layers[1:], key=lambda layer: -layer.weights)[: _MAX_MAPS - 1]
    drawn = [layer for layer in inspection.layers if layer is inspection.layers[0] or layer in largest]
    pictures = []
    for layer in drawn:
        cells, block = pixels.owner_cells(maps[layer.path], _MAX_CELLS)
        cell = "" if block == (1, 1) else f", {block[0]} x {block[1]} weights per cell"
        pictures.append(
            {
                "path": layer.path,
                "alt": f"{layer.path}: {layer.free / layer.weights:.1%} of {layer.weights:,} weights are free",
                "caption": f"{_times(layer.shape)}{cell}",
                "picture": _owners(cells, colours),
            }
        )
    return {"maps": pictures, "not_drawn": len(inspection.layers) - len(drawn)}


def _histograms(
    packed: PackedModel, inspection: Inspection, maps: Mapping[str, np.ndarray], colours: np.ndarray
) -> dict[str, Any]:
    weights = lifecycle.masked_weights(packed)
    largest, counts = pixels.weight_counts(weights, maps, len(inspection.tasks))
    common = {"largest": f"{largest:.3g}", "bins": pixels.BINS}
    heights = counts / np.maximum(counts.max(axis=1, keepdims=True), 1)
    if len(inspection.tasks) > _MAX_HISTOGRAMS:
        return {**common, "histogram_picture": _png(Image.fromarray(pixels.heat(heights, 0.0, 1.0)))}
    histograms = [
        {
            "caption": f"{task.number}: {task.name}, {task.weights:,} weights",
            "alt": f"Histogram of the weights of task {task.number}, {task.name}",
            "colour": matplotlib.colors.to_hex(colours[task.number]),
            "path": "".join(f"M{at} 100V{100 - 100 * height:.3g}h1V100z" for at, height in enumerate(row) if height),
        }
        for task, row in zip(inspection.tasks, heights, strict=True)
    ]
    return {**common, "histograms": histograms}


def _filters(packed: PackedModel, maps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    path_and_tiles = pixels.filters(packed, maps)
    if path_and_tiles is None:
        return {}
    path, tiles = path_and_tiles
    number, height, width, channels = tiles.shape
    columns = min(number, 8)
    sheet = pixels.filter_sheet(tiles, columns)
    colours = "" if channels == 3 else "; red is positive, blue is negative, white is 0 or free"
    caption = (
        f"{path}: the weights of the {number} outputs with the most owned weights, as {height} x {width} pictures, "
        f"each scaled to its own largest weight{colours}"
    )
    picture = {"caption": caption, "alt": f"Filters of {path}", "picture": _png(Image.fromarray(sheet))}
    return {"filters": {**picture, "width": min(960, sheet.shape[1] * max(4, 96 // width))}}


def _about(inspection: Inspection) -> dict[str, Any]:
    packages = inspection.environment.get("packages", {})
    facts = {
        "file": None if inspection.bytes is None else f"{inspection.file}, {size(inspection.bytes)}",
        "heads": {"per_task": "one per task", "shared": "one for all tasks"}.get(inspection.head, inspection.head),
        "freed weights": inspection.freed_weights,
        "biases and normalization": inspection.bias_policy,
        "written by": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "git commit": inspection.environment.get("git_commit"),
    }
    return {name: value for name, value in facts.items() if value}


def _owners(cells: np.ndarray, colours: np.ndarray) -> str:
    picture = Image.fromarray(cells)
    picture.putpalette(rgb(colours).tobytes())
    return _png(picture)


def _png(picture: Image.Image) -> str:
    """Return a picture as a PNG in a data URL."""
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


_NEXT_TASK = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
schedule = tp.EqualShare(final_prune={final_prune}, num_tasks={tasks}, rounds=8)
packed.begin_task("{name}", num_classes={classes})
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
packed.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
packed.fit(x, y, epochs=40)  # training
callbacks = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot("masks/")]
packed.fit(x, y, epochs=40, callbacks=callbacks)  # pruning and retraining
{save}"{file}")"""
_COMMIT_TASK = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
packed.commit_task()  # or prune and retrain first: fit with PruneRoundScheduler, GradientMask and TaskMaskSnapshot
{save}"{file}")"""
_USE_TASK = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
packed.select_task("{name}")  # predict, evaluate and __call__ now compute as this task"""

_KERAS_FILE = ("keras.models.load_model", "packed.save(")
_PACKNET_FILE = ("tp.load_pack", "tp.save_pack(packed, ")


def advice(inspection: Inspection) -> tuple[str, str]:
    """Return a sentence about what to do next with the pack, and the code that does it."""
    load, save = _PACKNET_FILE if inspection.one_file else _KERAS_FILE
    values: dict[str, Any] = {"file": inspection.file or "pack.keras", "load": load, "save": save}
    if inspection.open_task is not None:
        text = f"Task {inspection.open_task} is open: commit it before the next one begins."
        return text, _COMMIT_TASK.format(**values)
    if inspection.room is not None and inspection.room.at_most == 0:
        text = "The pack is full: no further task fits. Its tasks can be used and exported."
        return text, _USE_TASK.format(**values, name=inspection.tasks[-1].name)
    number = len(inspection.tasks) + 1
    if inspection.room is None:
        tasks, final_prune = 5, 0.75
        text = "Set the number of tasks, and the fraction of the weights that stays free after them (final_prune)."
    else:
        tasks, final_prune = number, inspection.room.final_prune(number)
        text = (
            f"With final_prune = {final_prune:.6g} after {number} tasks, the next task takes the same fraction of the "
            "free weights as the last ones did."
        )
    classes = next(iter(inspection.tasks[-1].outputs.values()), 2) if inspection.tasks else 2
    values |= {"final_prune": f"{final_prune:.6g}", "tasks": tasks, "name": f"task_{number}", "classes": classes}
    return f"{text} x and y are the examples of the next task.", _NEXT_TASK.format(**values)
