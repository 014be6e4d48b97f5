"""What the callbacks need of a Keras optimizer: start it afresh, and clear its memory of some weights."""

import copy
from typing import Any

import keras
import numpy as np
from keras import ops

# Each entry of a weight is updated from its own gradient and slots alone. Not so where norms or means of a whole weight
# come in: LAMB, Adafactor, Muon, and what users write.
ELEMENTWISE = ("SGD", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam", "Adagrad", "Adadelta", "Ftrl", "Lion")


def is_elementwise(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether an entry of a weight that has no gradient has no influence on any other one, nor on an average of it."""
    kinds = [getattr(keras.optimizers, name) for name in ELEMENTWISE]
    return type(optimizer) in kinds and not optimizer.use_ema


def reset(optimizer: keras.optimizers.Optimizer, config: dict[str, Any] | None = None) -> None:
    """Puts every variable of a built `optimizer` (slots, step count, loss scale) back to its initial value.

    The variables stay the same objects, so that compiled training steps stay valid.

    Args:
        optimizer: A Keras optimizer; one that was not built yet is left alone, it is fresh.
        config: Its config at compile time. Without it, a learning rate that a callback changed stays changed.
    """
    if not optimizer.built:
        return
    twin = fresh(optimizer, config)
    twin.build(_trainable(optimizer))
    for variable, initial in zip(optimizer.variables, twin.variables, strict=True):
        variable.assign(initial)


def fresh(optimizer: keras.optimizers.Optimizer, config: dict[str, Any] | None = None) -> keras.optimizers.Optimizer:
    """A new optimizer, not built, with the settings of `optimizer` or those in `config`."""
    # A copy, since some of Keras's `from_config` take their argument apart.
    return type(optimizer).from_config(copy.deepcopy(config or optimizer.get_config()))


def knows(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> bool:
    """Whether `optimizer` can train exactly these variables: it was built for them, or not at all yet."""
    return not optimizer.built or [id(v) for v in _trainable(optimizer)] == [id(v) for v in variables]


def clear_slots(optimizer: keras.optimizers.Optimizer, variable: keras.Variable, keep: np.ndarray) -> None:
    """Sets what `optimizer` remembers of `variable` (momentum, moments, averages) to 0 outside the mask `keep`."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.built:
        return
    known = [v is variable for v in inner._trainable_variables]
    if not any(known):
        return
    index = known.index(True)
    for slots in _slot_lists(inner):
        slot = slots[index]
        if slot is not None and tuple(slot.shape) == keep.shape:
            slot.assign(ops.where(keep, slot, ops.zeros((), slot.dtype)))


def _trainable(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)._trainable_variables


def _slot_lists(optimizer):
    """Keras keeps each kind of slot in a list parallel to the trainable variables."""
    size = len(optimizer._trainable_variables)
    for name, value in vars(optimizer).items():
        if not isinstance(value, list) or name == "_trainable_variables" or len(value) != size:
            continue
        if all(slot is None or isinstance(slot, keras.Variable) for slot in value):
            yield value
