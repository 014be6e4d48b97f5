"""Resets Keras optimizers, clears slots of pruned weights, and restores learning rates."""

import contextlib
import copy
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_packnet.layers.weights import view
from tf_packnet.system.keras_internals import learning_rate_of, optimizer_trainable_variables

# Optimizers that update each entry of a weight from its own gradient and slots alone. LAMB, Adafactor and Muon use
# norms or means of whole weights; optimizers that users write may, too.
_ELEMENTWISE = ("SGD", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam", "Adagrad", "Adadelta", "Ftrl", "Lion")


def is_elementwise(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether `optimizer` updates each entry of a weight without looking at other entries, and keeps no averages."""
    kinds = [getattr(keras.optimizers, name) for name in _ELEMENTWISE]
    return type(optimizer) in kinds and not optimizer.use_ema


@contextlib.contextmanager
def applied_if(
    passed: tf.Tensor, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> Iterator[None]:
    """Within the block, `optimizer.apply` changes `variables` and the optimizer's own variables only if `passed`.

    The old or the new value is selected wherever the optimizer assigns one, in the pass in which XLA computes the new
    value. For a selection after the update, XLA would first copy every slot: 9% instead of 3% of a gradient step of the
    MNIST preset.

    Args:
        passed: Scalar of dtype bool.
        optimizer: A built Keras optimizer.
        variables: The trainable variables.
    """
    changing = [variable.value for variable in (*variables, *optimizer.variables)]
    before = {variable.ref(): tf.convert_to_tensor(variable) for variable in changing}
    selected_on_assignment = set()

    def selecting(method: str) -> Callable[..., None]:
        def assign(variable: Any, value: Any) -> None:
            variable = variable.value if isinstance(variable, keras.Variable) else variable
            if isinstance(value, tf.IndexedSlices) or variable.ref() not in before:
                getattr(type(optimizer), method)(optimizer, variable, value)
                selected_on_assignment.discard(variable.ref())
                return
            value, current = tf.cast(value, variable.dtype), tf.convert_to_tensor(variable)
            new = {"assign": value, "assign_add": current + value, "assign_sub": current - value}[method]
            variable.assign(tf.where(passed, new, before[variable.ref()]))
            selected_on_assignment.add(variable.ref())

        return assign

    # Other optimizers, and constraints, may assign to variables without using these methods.
    uses_methods = is_elementwise(optimizer) and not optimizer.gradient_accumulation_steps
    uses_methods = uses_methods and all(variable.constraint is None for variable in variables)
    methods = ("assign", "assign_add", "assign_sub") if uses_methods else ()
    for method in methods:
        object.__setattr__(optimizer, method, selecting(method))
    try:
        yield
    finally:
        for method in methods:
            object.__delattr__(optimizer, method)
    for variable in changing:
        if variable.ref() not in selected_on_assignment:
            variable.assign(tf.where(passed, tf.convert_to_tensor(variable), before[variable.ref()]))


def reset(optimizer: keras.optimizers.Optimizer) -> None:
    """Reset every variable of a built `optimizer` (slots, step count, loss scale) to its initial value.

    The learning rate stays the same; a schedule restarts with the step count. The variables stay the same objects, so
    that compiled training steps stay valid.

    Args:
        optimizer: A Keras optimizer. Nothing happens if it is not built yet.
    """
    if not optimizer.built:
        return
    twin = fresh(optimizer)
    twin.build(trained_by(optimizer))
    rate = learning_rate_of(holder_of_rate(optimizer))
    for variable, initial in zip(optimizer.variables, twin.variables, strict=True):
        if variable is not rate:
            variable.assign(initial)


def fresh(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return a new optimizer, not built, with the current settings of `optimizer`, including its learning rate."""
    # Copy, because some of Keras's `from_config` modify their argument.
    new = type(optimizer).from_config(copy.deepcopy(optimizer.get_config()))
    rate, new_rate = (learning_rate_of(holder_of_rate(each)) for each in (optimizer, new))
    if isinstance(rate, keras.Variable) and isinstance(new_rate, keras.Variable):  # its `get_config` may lack the rate
        new_rate.assign(rate)
    return new


def remember_rate(optimizer: keras.optimizers.Optimizer) -> Callable[[], bool]:
    """Remember the learning rate of `optimizer`: a number, a schedule or a function.

    Args:
        optimizer: A Keras optimizer, built or not.

    Returns:
        A function that restores the rate. It returns True if the rate had been replaced by another object, which a
        compiled step may use.
    """
    holder = holder_of_rate(optimizer)
    rate = learning_rate_of(holder)
    value = np.array(view(rate)) if isinstance(rate, keras.Variable) else None

    def restore_rate() -> bool:
        replaced = learning_rate_of(holder) is not rate
        if replaced and isinstance(rate, keras.Variable):
            object.__setattr__(holder, "_learning_rate", rate)  # Keras itself does not replace a schedule by a number
            holder._variables.insert(1, rate)  # after the step count, where Keras puts it
        elif replaced:
            holder.learning_rate = rate
        if value is not None and not np.array_equal(view(rate), value):
            rate.assign(value)
        return replaced

    return restore_rate


def holder_of_rate(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer that has the learning rate: the inner one of a LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def of_user(model: keras.Model) -> list[tuple[keras.Model, str, keras.optimizers.Optimizer]]:
    """Return the further optimizers in attributes of the user's class, for its own `train_step`.

    Returns:
        For each: the model or layer that has it, the name of the attribute, and the optimizer.
    """
    holders = [holder for holder in (model, vars(model).get("_user_layer")) if holder is not None]
    return [
        (holder, name, value)
        for holder in holders
        for name, value in sorted(vars(holder).items())
        if isinstance(value, keras.optimizers.Optimizer) and name != "optimizer"
    ]


def all_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Return every optimizer that trains `model`: the one from `compile`, then those of `of_user`."""
    compiled_with = [] if getattr(model, "optimizer", None) is None else [model.optimizer]
    return [*compiled_with, *(optimizer for _, _, optimizer in of_user(model))]


def knows(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> bool:
    """Whether `optimizer` is built for exactly these variables, or not built yet."""
    return not optimizer.built or [id(v) for v in trained_by(optimizer)] == [id(v) for v in variables]


def trains_only(optimizer: keras.optimizers.Optimizer, variables: Container[int]) -> bool:
    """Whether `optimizer` is built only for variables with these `id`s, or not built yet."""
    return not optimizer.built or all(id(variable) in variables for variable in trained_by(optimizer))


def clear_slots(optimizer: keras.optimizers.Optimizer, variable: keras.Variable, keep: np.ndarray) -> None:
    """Set slots of `optimizer` (momentum, moments, averages) for `variable` to 0 outside a mask.

    Args:
        optimizer: A Keras optimizer. Nothing happens if it is not built, or not built for `variable`.
        variable: A trainable variable.
        keep: Boolean mask, shaped like `variable`.
    """
    inner = holder_of_rate(optimizer)
    if not inner.built:
        return
    index = next((i for i, trained in enumerate(optimizer_trainable_variables(inner)) if trained is variable), None)
    if index is None:
        return
    for slots in _slot_lists(inner):
        slot = slots[index]
        if slot is not None and tuple(slot.shape) == keep.shape:
            slot.assign(ops.where(keep, slot, ops.zeros((), slot.dtype)))


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the variables that `optimizer` was built for."""
    return optimizer_trainable_variables(holder_of_rate(optimizer))


def _slot_lists(optimizer: keras.optimizers.Optimizer) -> Iterator[list[keras.Variable | None]]:
    """Return the lists in which Keras keeps each kind of slot, parallel to the trainable variables."""
    size = len(optimizer_trainable_variables(optimizer))
    for name, value in vars(optimizer).items():
        if not isinstance(value, list) or name == "_trainable_variables" or len(value) != size:
            continue
        if all(slot is None or isinstance(slot, keras.Variable) for slot in value):
            yield value
