"""How long a SavedModel takes beside another."""

import os
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet.export.compaction.graph import inputs_of


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
