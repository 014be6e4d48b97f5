"""Computes a task that a pack has not learned yet, without a lasting change."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from tf_packnet import lifecycle
from tf_packnet.packed.heads import heads_of_task


@contextlib.contextmanager
def preview_task(packed: Any, num_classes: int) -> Iterator[None]:
    """Make a pack compute as if the next task had just begun, inside the block. Afterwards, all bits are restored.

    The head is the one that `begin_task` would create. Free weights are 0, or have their pretrained values, so that
    outputs do not depend on `freed_weights`. Before the first task, all weights have their initial values.

    Args:
        packed: A `PackedModel` whose last task is committed, or that has no task yet.
        num_classes: Number of outputs of the head.

    Raises:
        ArgumentError: If the head cannot have this number of outputs, or no weight is free.
        RuntimeError: If a task is open.
    """
    heads = heads_of_task(packed, packed.committed_tasks + 1, num_classes, None)
    train_function = packed.train_function  # compiled for the heads that are restored after the block
    with _unchanged(packed):
        with lifecycle.strategy_scope(packed), lifecycle.switching_heads(packed):
            for head, outputs, activation in heads:
                head.use(outputs, activation)
        lifecycle.begin_task(packed, "zero", packed.pack_settings.seed)
        yield
    packed.train_function = train_function


@contextlib.contextmanager
def _unchanged(packed: Any) -> Iterator[None]:
    """Restore the values and the records of a pack, and the random generators of Python and NumPy, after the block."""
    generators = random.getstate(), np.random.get_state()
    task_records = lifecycle.records(packed)
    of_records = dict(vars(task_records))
    state = {name: lifecycle.view_of(variable) for name, variable in lifecycle.bind_state(packed).items()}
    restore = [layer.snapshot() for layer in lifecycle.task_layers(packed)]
    try:
        yield
    finally:
        with lifecycle.strategy_scope(packed), lifecycle.switching_heads(packed):
            for restore_layer in restore:
                restore_layer()
            lifecycle.show_state(packed, state)
        vars(task_records).update(of_records)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
