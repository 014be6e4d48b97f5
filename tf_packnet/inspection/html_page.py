"""One page that shows what a pack holds, and needs nothing else: no script, no other file, no network."""

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
from tf_packnet.inspection.tables import score, shown_tasks, size
from tf_packnet.inspection.template import PAGE
from tf_packnet.packed_model import PackedModel
from tf_packnet.system import files

# Of more tasks than these, colours and numbers are shown as scales and pictures.
MAX_SWATCHES, MAX_CURVES, MAX_NUMBERS = 12, 24, 30
# Of more kernels the first and the largest ones are drawn.
MAX_MAPS = 24
# Cells of an owner map along an axis: a few screen pixels each, so that a single weight is seen.
MAX_CELLS = 192
STRIP = 1000
ENLARGED = 0.1  # if less of a layer is owned, that part is drawn again


def write(path: str | os.PathLike, packed: PackedModel, found: Inspection) -> None:
    """Writes the page, atomically.

    Args:
        path: Where.
        packed: The pack.
        found: What `inspect_pack` found in it.
    """
    content = render(packed, found)
    with files.replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def render(packed: PackedModel, found: Inspection) -> str:
    """The page as HTML."""
    maps = packed.owner_maps()
    colours = task_colours(len(found.tasks))
    said, code = advice(found)
    return PAGE.render(
        title=f"What {found.file or found.model} holds",
        lead=_lead(found),
        found=found,
        tasks=found.tasks,
        known=found.known(),
        score=score,
        colours=[matplotlib.colors.to_hex(colour) for colour in colours],
        scale=_owners(pixels.strip([0, *[1] * len(found.tasks)], 254), colours),
        most_swatches=MAX_SWATCHES,
        shown=shown_tasks(len(found.tasks)),
        strips=[_strip(layer, colours) for layer in found.layers],
        advice=said,
        code=code,
        about=_about(found),
        **_accuracy(found),
        **_maps(found, maps, colours),
        **_histograms(packed, found, maps, colours),
        **_filters(packed, maps),
    )


def _lead(found: Inspection) -> str:
    count = len(found.tasks)
    tasks = "No task owns anything" if not count else f"{count} task{'s' if count > 1 else ''} own"
    owned = "" if not count else f" {1 - found.free / found.weights:.1%}"
    layers = f"{len(found.layers)} kernel{'s' if len(found.layers) > 1 else ''}"
    return f"{tasks}{owned} of the {found.weights:,} weights of {layers} in model {found.model}."


def _strip(layer: LayerFacts, colours: np.ndarray) -> dict[str, Any]:
    counts = [layer.free, *layer.owned]
    owned = sum(layer.owned)
    least, most = min(layer.owned, default=0), max(layer.owned, default=0)
    enlarged = 0 < owned < ENLARGED * layer.weights
    return {
        "path": layer.path,
        "shape": _times(layer.shape),
        "free": f"{layer.free / layer.weights:.1%}",
        "alt": f"{layer.path}: {layer.free / layer.weights:.1%} free; a task owns {least:,} to {most:,} weights of it",
        "whole": _owners(pixels.strip(counts, STRIP), colours),
        "owned": _owners(pixels.strip([0, *layer.owned], STRIP), colours) if enlarged else None,
    }


def _accuracy(found: Inspection) -> dict[str, Any]:
    if not found.accuracy:
        return {}
    scores = np.full((len(found.accuracy),) * 2, np.nan)
    for index, row in enumerate(found.accuracy):
        scores[index, : len(row)] = row
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    ends = {"lowest": f"{low:.4f}", "highest": f"{high:.4f}"}
    colours = pixels.heat(scores, min(low, high - 0.05), high)
    if len(scores) > MAX_NUMBERS:
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
        for index, row in enumerate(found.accuracy)
    ]
    return {"matrix": cells, **ends}


def _maps(found: Inspection, maps: Mapping[str, np.ndarray], colours: np.ndarray) -> dict[str, Any]:
    by_size = sorted(found.layers[1:], key=lambda layer: -layer.weights)[: MAX_MAPS - 1]
    drawn = [layer for layer in found.layers if layer is found.layers[0] or layer in by_size]
    pictures = []
    for layer in drawn:
        cells, block = pixels.owner_cells(maps[layer.path], MAX_CELLS)
        cell = "" if block == (1, 1) else f", a cell is {block[0]} x {block[1]} weights"
        pictures.append(
            {
                "path": layer.path,
                "alt": f"{layer.path}: {layer.free / layer.weights:.1%} of {layer.weights:,} weights are free",
                "caption": f"{_times(layer.shape)}{cell}",
                "picture": _owners(cells, colours),
            }
        )
    return {"maps": pictures, "not_drawn": len(found.layers) - len(drawn)}


def _histograms(packed: PackedModel, found: Inspection, maps, colours: np.ndarray) -> dict[str, Any]:
    weights = lifecycle.masked_weights(packed)
    largest, counts = pixels.weight_counts(weights, maps, len(found.tasks))
    common = {"largest": f"{largest:.3g}", "bins": pixels.BINS}
    heights = counts / np.maximum(counts.max(axis=1, keepdims=True), 1)
    if len(found.tasks) > MAX_CURVES:
        return {**common, "histogram_picture": _png(Image.fromarray(pixels.heat(heights, 0.0, 1.0)))}
    drawn = [
        {
            "caption": f"{task.number}: {task.name}, {task.weights:,} weights",
            "alt": f"Histogram of the weights of task {task.number}, {task.name}",
            "colour": matplotlib.colors.to_hex(colours[task.number]),
            "path": "".join(f"M{at} 100V{100 - 100 * height:.3g}h1V100z" for at, height in enumerate(row) if height),
        }
        for task, row in zip(found.tasks, heights, strict=True)
    ]
    return {**common, "histograms": drawn}


def _filters(packed: PackedModel, maps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found = pixels.filters(packed, maps)
    if found is None:
        return {}
    path, tiles = found
    number, height, width, channels = tiles.shape
    columns = min(number, 8)
    sheet = pixels.filter_sheet(tiles, columns)
    coloured = "" if channels == 3 else "; red is above 0, blue below, white 0 or not owned"
    caption = (
        f"{path}: the {number} outputs that own most, as pictures of {height} x {width}, each scaled to its own "
        f"largest weight{coloured}"
    )
    picture = {"caption": caption, "alt": f"Filters of {path}", "picture": _png(Image.fromarray(sheet))}
    return {"filters": {**picture, "width": min(960, sheet.shape[1] * max(4, 96 // width))}}


def _about(found: Inspection) -> dict[str, Any]:
    packages = found.environment.get("packages", {})
    facts = {
        "file": found.file and f"{found.file}, {size(found.bytes)}",
        "heads": {"per_task": "one a task", "shared": "one for all tasks"}.get(found.head, found.head),
        "freed weights": found.freed_weights,
        "biases and normalisation": found.bias_policy,
        "written by": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "git commit": found.environment.get("git_commit"),
    }
    return {name: value for name, value in facts.items() if value}


def _owners(cells: np.ndarray, colours: np.ndarray) -> str:
    picture = Image.fromarray(cells)
    picture.putpalette(rgb(colours).tobytes())
    return _png(picture)


def _png(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


_NEXT = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
schedule = tp.EqualShare(final_prune={final_prune}, num_tasks={tasks}, rounds=8)
packed.begin_task("{name}", num_classes={classes})
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
packed.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
packed.fit(x, y, epochs=40)  # the day
night = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot("masks/")]
packed.fit(x, y, epochs=40, callbacks=night)  # the night
{save}"{file}")"""
_OPEN = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
packed.commit_task()  # or the night first: fit with PruneRoundScheduler, GradientMask and TaskMaskSnapshot
{save}"{file}")"""
_USE = """\
import keras
import tf_packnet as tp

packed = {load}("{file}")
packed.select_task("{name}")  # predict, evaluate and __call__ now compute as this task"""

_KERAS = ("keras.models.load_model", "packed.save(")
_ONE_FILE = ("tp.load_pack", "tp.save_pack(packed, ")


def advice(found: Inspection) -> tuple[str, str]:
    """What to do next, and the code that does it."""
    load, save = _ONE_FILE if found.one_file else _KERAS
    names = {"file": found.file or "pack.keras", "load": load, "save": save}
    if found.open_task is not None:
        said = f"Task {found.open_task} is open: commit it before the next one begins."
        return said, _OPEN.format(**names)
    if found.room is not None and found.room.at_most == 0:
        said = "The pack is full; its tasks can be used and exported."
        return said, _USE.format(**names, name=found.tasks[-1].name)
    number = len(found.tasks) + 1
    tasks, rate = (number, found.room.final_prune(number)) if found.room else (5, 0.75)
    said = (
        f"With final_prune = {rate:.6g} after {number} tasks, the next one takes as large a share as the last ones did."
        if found.room
        else "Say how many tasks there will be, and what share of the weights shall be free after them."
    )
    classes = next(iter(found.tasks[-1].outputs.values()), 2) if found.tasks else 2
    names |= {"final_prune": f"{rate:.6g}", "tasks": tasks, "name": f"task_{number}", "classes": classes}
    return f"{said} x and y are its examples.", _NEXT.format(**names)
