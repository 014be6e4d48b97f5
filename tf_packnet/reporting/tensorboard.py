"""What TensorBoard shows of a pack: room, owners, weights, accuracy, flags. (Curves: `callbacks.EpochLog`.)"""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.packed_model import PackedModel
from tf_packnet.reporting import pack_pixels
from tf_packnet.reporting.owner_maps import draw_owner_map, to_rgb
from tf_packnet.reporting.pack_charts import accuracy_matrix, ownership_bars

PACK_RUN = "pack"
FILTERS_WIDTH = 640  # pixels, about


def log_pack(
    directory: Path, packed: PackedModel, owner_maps: dict[str, np.ndarray], results: dict[str, Any], task: int
) -> None:
    """Adds the state of the pack after `task` (1-based), which is also the step of the axis.

    Args:
        directory: The TensorBoard directory of the run.
        packed: The pack.
        owner_maps: By weight path.
        results: The content of `results.json` so far.
        task: Number of the task just learned.
    """
    names = [entry["name"] for entry in results["tasks"][:task]]
    writer = tf.summary.create_file_writer(str(directory / PACK_RUN))
    with writer.as_default(step=task):
        tf.summary.scalar(
            "average_accuracy", results["average_accuracy"], description="mean test accuracy over the tasks so far"
        )
        room = results["free_fraction"]
        shares = {"overall": room["overall"], **room["layers"]}
        for name, share in shares.items():
            if task == 1:  # the axis begins at 0, where everything is free
                tf.summary.scalar(f"free_share/{name}", 1.0, step=0)
            tf.summary.scalar(f"free_share/{name}", share, description="weights without an owner, after n tasks")
        for path, owner in owner_maps.items():
            tf.summary.image(f"owner_map/{path}", to_rgb(draw_owner_map(owner, path, names))[np.newaxis])
        _log_accuracy(results)
        tf.summary.image("ownership", to_rgb(ownership_bars(owner_maps, len(names)))[np.newaxis])
        _log_weights(packed, owner_maps, f"{task}_{names[-1]}", task)
    writer.close()


def _log_accuracy(results: dict[str, Any]) -> None:
    names = [entry["name"] for entry in results["tasks"]]
    for number, (name, score) in enumerate(zip(names, results["accuracy"][-1], strict=False), start=1):
        tf.summary.scalar(f"accuracy/{number}_{name}", score, description="test accuracy on one task, after n tasks")
    tf.summary.image("accuracy_matrix", to_rgb(accuracy_matrix(results["accuracy"], names))[np.newaxis])


def _log_weights(packed: PackedModel, owner_maps: dict[str, np.ndarray], name: str, task: int) -> None:
    values = pack_pixels.values_of(lifecycle.masked_weights(packed), owner_maps, task)
    if values.size:
        tf.summary.histogram(f"weights/{name}", values, description="what a task owns, when it was learned")
    found = pack_pixels.filters(packed, owner_maps)
    if found is not None:
        path, tiles = found
        sheet = pack_pixels.filter_sheet(tiles, min(8, len(tiles)))
        larger = max(1, FILTERS_WIDTH // sheet.shape[1])
        tf.summary.image(f"filters/{path}", sheet.repeat(larger, axis=0).repeat(larger, axis=1)[np.newaxis])


def log_hyperparameters(directory: Path, results: dict[str, Any]) -> None:
    """Enters the finished run under HPARAMS: every flag, with the scores it led to."""
    from tensorboard.plugins.hparams import api as hparams

    nothing = ("data_dir", "output_dir", "on_corruption")  # they decide nothing
    flags = {name: _plain(value) for name, value in results["config"].items() if name not in nothing}
    scores = {
        "score/average_accuracy": results["average_accuracy"],
        "score/worst_accuracy": min(results["accuracy"][-1]),
        "score/free_share": results["free_fraction"]["overall"],
    }
    writer = tf.summary.create_file_writer(str(directory))
    with writer.as_default(step=len(results["tasks"])):
        hparams.hparams_config(
            hparams=[hparams.HParam(name) for name in flags],
            metrics=[hparams.Metric(tag, display_name=tag.split("/")[1].replace("_", " ")) for tag in scores],
        )
        hparams.hparams(flags, trial_id="run")
        for tag, value in scores.items():
            tf.summary.scalar(tag, value)
    writer.close()


def _plain(value: Any) -> Any:
    """HPARAMS takes numbers, booleans and strings."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else value
