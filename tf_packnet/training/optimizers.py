"""What the callbacks need of a Keras optimizer: start it afresh, and clear its memory of some weights."""

import contextlib
import copy
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_packnet.layers.weights import view

# Each entry of a weight is updated from its own gradient and slots alone. Not so where norms or means of a whole weight
# come in: LAMB, Adafactor, Muon, and what users write.
ELEMENTWISE = ("SGD", "RMSprop", "Adam", "AdamW", "Adamax", "Nadam", "Adagrad", "Adadelta", "Ftrl", "Lion")


def is_elementwise(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether an entry of a weight that has no gradient has no influence on any other one, nor on an average of it."""
    kinds = [getattr(keras.optimizers, name) for name in ELEMENTWISE]
    return type(optimizer) in kinds and not optimizer.use_ema


@contextlib.contextmanager
def applied_if(
    passed: tf.Tensor, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> Iterator[None]:
    """Lets `optimizer.apply` in the block change `variables` and the optimizer's own only if `passed`.

    The choice is made wherever the optimizer assigns a value, so that XLA makes it in the pass that computes the value.
    A choice after the update makes XLA copy every slot first: 9% of a step of the MNIST preset's network, against 3%.

    Args:
        passed: Scalar of dtype bool.
        optimizer: A built Keras optimizer.
        variables: The variables that it trains.
    """
    changing = [variable.value for variable in (*variables, *optimizer.variables)]
    before = {variable.ref(): tf.convert_to_tensor(variable) for variable in changing}
    chosen = set()

    def choosing(method: str) -> Callable[..., None]:
        def assign(variable: Any, value: Any) -> None:
            variable = variable.value if isinstance(variable, keras.Variable) else variable
            if isinstance(value, tf.IndexedSlices) or variable.ref() not in before:
                getattr(type(optimizer), method)(optimizer, variable, value)
                chosen.discard(variable.ref())
                return
            value, now = tf.cast(value, variable.dtype), tf.convert_to_tensor(variable)
            new = {"assign": value, "assign_add": now + value, "assign_sub": now - value}[method]
            variable.assign(tf.where(passed, new, before[variable.ref()]))
            chosen.add(variable.ref())

        return assign

    # Others may also assign to variables directly, after these methods.
    by_methods = is_elementwise(optimizer) and not optimizer.gradient_accumulation_steps
    by_methods = by_methods and all(variable.constraint is None for variable in variables)
    methods = ("assign", "assign_add", "assign_sub") if by_methods else ()
    for method in methods:
        object.__setattr__(optimizer, method, choosing(method))
    try:
        yield
    finally:
        for method in methods:
            object.__delattr__(optimizer, method)
    for variable in changing:
        if variable.ref() not in chosen:
            variable.assign(tf.where(passed, tf.convert_to_tensor(variable), before[variable.ref()]))


def reset(optimizer: keras.optimizers.Optimizer) -> None:
    """Puts every variable of a built `optimizer` (slots, step count, loss scale) back to its initial value.

    The learning rate stays as it is; a schedule begins again with the step count. The variables stay the same objects,
    so that compiled training steps stay valid.

    Args:
        optimizer: A Keras optimizer; one that was not built yet is left alone, it is fresh.
    """
    if not optimizer.built:
        return
    twin = fresh(optimizer)
    twin.build(trained_by(optimizer))
    rate = holder_of_rate(optimizer)._learning_rate
    for variable, initial in zip(optimizer.variables, twin.variables, strict=True):
        if variable is not rate:
            variable.assign(initial)


def fresh(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """A new optimizer, not built, with the present settings of `optimizer`, its learning rate included."""
    # A copy, since some of Keras's `from_config` take their argument apart.
    new = type(optimizer).from_config(copy.deepcopy(optimizer.get_config()))
    now, then = (holder_of_rate(each)._learning_rate for each in (optimizer, new))
    if isinstance(now, keras.Variable) and isinstance(then, keras.Variable):  # whatever its `get_config` says
        then.assign(now)
    return new


def remembered_rate(optimizer: keras.optimizers.Optimizer) -> Callable[[], bool]:
    """A function that puts the present learning rate of `optimizer` back: a number, a schedule or a function.

    It says whether another object was there, which a compiled step may have taken up.

    Args:
        optimizer: A Keras optimizer, built or not.
    """
    holder = holder_of_rate(optimizer)
    rate = holder._learning_rate
    value = _value(rate)

    def put_back() -> bool:
        replaced = holder._learning_rate is not rate
        if replaced and isinstance(rate, keras.Variable):
            object.__setattr__(holder, "_learning_rate", rate)  # Keras itself sets no number over a schedule
            holder._variables.insert(1, rate)  # behind the step count, where Keras has it
        elif replaced:
            holder.learning_rate = rate
        if value is not None and not np.array_equal(_value(rate), value):
            rate.assign(value)
        return replaced

    return put_back


def _value(rate: Any) -> np.ndarray | None:
    return np.array(view(rate)) if isinstance(rate, keras.Variable) else None


def holder_of_rate(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that has the learning rate: the inner one of a LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def of_user(model: keras.Model) -> list[tuple[keras.Model, str, keras.optimizers.Optimizer]]:
    """Further optimizers that a user's class has for steps of its own: who holds it, in which attribute, itself."""
    holders = [holder for holder in (model, vars(model).get("_user_layer")) if holder is not None]
    return [
        (holder, name, value)
        for holder in holders
        for name, value in sorted(vars(holder).items())
        if isinstance(value, keras.optimizers.Optimizer) and name != "optimizer"
    ]


def all_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Every optimizer that trains `model`: the one it was compiled with, then those of `of_user`."""
    own = [] if getattr(model, "optimizer", None) is None else [model.optimizer]
    return [*own, *(optimizer for _, _, optimizer in of_user(model))]


def knows(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> bool:
    """Whether `optimizer` can train exactly these variables: it was built for them, or not at all yet."""
    return not optimizer.built or [id(v) for v in trained_by(optimizer)] == [id(v) for v in variables]


def trains_only(optimizer: keras.optimizers.Optimizer, variables: Container[int]) -> bool:
    """Whether all that `optimizer` was built for is among these variables, given by their `id`."""
    return not optimizer.built or all(id(variable) in variables for variable in trained_by(optimizer))


def clear_slots(optimizer: keras.optimizers.Optimizer, variable: keras.Variable, keep: np.ndarray) -> None:
    """Sets what `optimizer` remembers of `variable` (momentum, moments, averages) to 0 outside the mask `keep`."""
    inner = holder_of_rate(optimizer)
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


def trained_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that a built `optimizer` was built for."""
    return holder_of_rate(optimizer)._trainable_variables


def _slot_lists(optimizer):
    """Keras keeps each kind of slot in a list parallel to the trainable variables."""
    size = len(optimizer._trainable_variables)
    for name, value in vars(optimizer).items():
        if not isinstance(value, list) or name == "_trainable_variables" or len(value) != size:
            continue
        if all(slot is None or isinstance(slot, keras.Variable) for slot in value):
            yield value
