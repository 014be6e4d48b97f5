"""The compiled functions of a `Fleet`, one for all models of a kind. Each takes many steps of each model per call.

On a GPU, `StackedProgram` takes the steps of all models at the same time, by `tf.vectorized_map` over a step of one
model. The variables of all models are stacked at the beginning of a call. Within the map, one model stands for all: a
`keras.StatelessScope` replaces its variables by those of each model.

On a CPU this would not be faster, since a single model keeps it busy. It would also round the updates of a few weights
differently: LLVM decides for each shape which products and sums it fuses. So `SharedProgram` takes the steps of one
model after another, with the function of a single model. It is compiled once for all models.
"""

import json
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.system.keras_internals import learning_rate_of, loss_tracker, stateless_updates
from tf_packnet.system.xla import vectorized_map
from tf_packnet.tasks.batches import decode
from tf_packnet.training import acceleration, kernels
from tf_packnet.training.gradient_step import assigned_in_forward_pass, forward_backward, masked_gradients
from tf_packnet.training.step_check import StepCheck


@dataclass(eq=False)
class Call:
    """A call of a model for its next steps.

    Attributes:
        model: The model.
        data: An element of `dataset()` of `ResidentBatches`.
        logs: The metrics after the steps.
        error: The error of the steps; None without one.
    """

    model: keras.Model
    data: dict[str, tf.Tensor]
    logs: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether the steps were taken, or something failed."""
        return bool(self.logs) or self.error is not None


def kind_of(model: keras.Model) -> str:
    """Return text that is equal for models whose steps one program can take.

    Such models have variables of the same shapes in the same order, and the same settings of optimizer and loss.
    """
    optimizer, examples = model.optimizer, model.device_examples
    settings = {name: value for name, value in optimizer.get_config().items() if name != "name"}
    if isinstance(learning_rate_of(optimizer), keras.Variable):
        del settings["learning_rate"]
    place = {id(variable): index for index, variable in enumerate(model.variables)}
    trained = [place[id(variable)] for variable in model.trainable_variables]
    variables = [(tuple(variable.shape), variable.dtype) for variable in _Variables(model).all]
    data = tuple(examples.images.shape), tuple(tf.shape(examples.images).numpy()), examples.shape, examples.dtypes
    compiled = {**model.get_compile_config(), "optimizer": [type(optimizer).__name__, settings]}
    return json.dumps([compiled, model.xla, trained, variables, data], default=str)


class SharedProgram:
    """Takes the steps of one model after another.

    Args:
        model: One of the models. Its function and its variables are used for all models.
    """

    def __init__(self, model: keras.Model):
        self._state = _state(model)
        self._record = model.step_record
        self._function = tf.function(model.train_step, autograph=False)

    def take(self, calls: Sequence[Call]) -> None:
        """Take the steps of calls, and give each its logs."""
        own = _values(self._state)
        for call in calls:
            state = _state(call.model)
            _assign(self._state, own if state[0] is self._state[0] else _values(state))
            logs = self._function(call.data)
            call.logs = {name: value.numpy() for name, value in logs.items()}
            after = _values(self._state)
            if state[0] is self._state[0]:
                own = after
            else:
                _assign(state, after)
        _assign(self._state, own)


class StackedProgram:
    """Takes the steps of several models at the same time.

    Args:
        model: One of the models. It is traced for all models.
        slots: The largest number of models. A smaller number uses the same compiled function.
    """

    def __init__(self, model: keras.Model, slots: int):
        self._model, self._slots = model, slots
        self._variables = _Variables(model)
        self._copies: weakref.WeakKeyDictionary[keras.Model, _Copies] = weakref.WeakKeyDictionary()
        self._compiled = kernels.compiled(self._steps)

    def take(self, calls: Sequence[Call]) -> None:
        """Take the steps of the calls of up to `slots` models, and give each its logs."""
        copies = [self._copies_of(call.model) for call in calls]
        inputs = [_inputs(call, own) for call, own in zip(calls, copies, strict=True)]
        idle = {**inputs[0], "steps": tf.zeros_like(inputs[0]["steps"])}  # computes but changes nothing
        outputs = self._compiled([*inputs, *[idle] * (self._slots - len(inputs))])
        problems = outputs["problems"].numpy()
        logs = {name: values.numpy() for name, values in outputs["logs"].items()}
        for slot, (call, own) in enumerate(zip(calls, copies, strict=True)):
            own.write(outputs["changing"][slot])
            if problems[slot]:
                call.model.step_record.problem.assign(problems[slot])
            call.logs = {name: values[slot] for name, values in logs.items()}

    def _copies_of(self, model: keras.Model) -> "_Copies":
        variables, copies = _Variables(model), self._copies.get(model)
        if copies is None or not copies.are_of(variables):  # a new task may have its own variables
            copies = self._copies[model] = _Copies(variables)
        return copies

    def _steps(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Take the steps of all slots; `inputs` has the result of `_inputs` for each."""
        flat = [tf.stack(vectors) for vectors in zip(*(each["variables"] for each in inputs), strict=True)]
        stacked = _unpacked(flat, self._variables.all)
        scale, steps = (tf.stack([each[name] for each in inputs]) for name in ("scale", "steps"))
        # Gathered before the loop: one operation per model and call, not per model and step.
        images, labels = (
            tf.stack([tf.gather(each[name], each["rows"]) for each in inputs], axis=1) for name in ("images", "labels")
        )
        count = len(self._variables.changing)
        changing, fixed = stacked[:count], stacked[count:]

        def body(number: tf.Tensor, problems: tf.Tensor, changing: list[tf.Tensor]) -> tuple[Any, ...]:
            active = (number < steps) & tf.equal(problems, 0)
            batches = images[number], labels[number], scale
            after, found = vectorized_map(kernels.drawing(self._step), (changing, fixed, batches))
            passed = active & tf.equal(found, 0)
            pairs = zip(self._variables.changing, after, changing, strict=True)
            changing = [_where(active if id(variable) in metrics else passed, *values) for variable, *values in pairs]
            return number + 1, tf.where(active, found, problems), changing

        metrics = {id(variable) for variable in self._model.metrics_variables}
        first, last = (tf.constant(0), tf.zeros(self._slots, tf.int64), changing), tf.reduce_max(steps)
        loop = tf.while_loop(lambda number, *_: number < last, body, first, parallel_iterations=1)
        _, problems, changing = loop
        logs = vectorized_map(self._logs, changing)
        vectors = [tf.unstack(values) for values in _packed(changing, axes=1)]
        return {"changing": list(zip(*vectors, strict=True)), "problems": problems, "logs": logs}

    def _step(self, inputs: tuple[Any, ...]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Take a step of one model. Return its changing variables and the `Problem` of the step."""
        changing, fixed, (images, labels, scale) = inputs
        model, examples = self._model, self._model.device_examples
        x = tf.reshape(decode(images, scale), (images.shape[0], *examples.shape))
        y = tf.cast(labels, examples.dtypes[1])
        with stateless_updates(model.optimizer), self._scope([*changing, *fixed]) as scope:
            weights = kernels.trained_weights(model)
            before = [weight.variable.value for _, weight in weights]
            selected = kernels.selected(weights, acceleration.OFF)
            both = forward_backward(model, (x, y), weights, selected, StepCheck())
            loss_tracker(model).update_state(both.loss, sample_weight=tf.shape(x)[0])
            gradients = masked_gradients(model, weights, both.kernel_gradients, both.variable_gradients)
            model.optimizer.apply(gradients, model.trainable_variables)
            for (_, weight), values in zip(weights, before, strict=True):  # the optimizer may have changed all entries
                weight.variable.assign(tf.where(weight.trained(), weight.variable.value, values))
            model.compute_metrics(x, both.y, both.y_pred, sample_weight=None)
            return [scope.get_current_value(variable) for variable in self._variables.changing], both.problem

    def _logs(self, changing: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        with self._scope(changing):
            return self._model.get_metrics_result()

    def _scope(self, values: Sequence[tf.Tensor]) -> keras.StatelessScope:
        pairs = zip(self._variables.all[: len(values)], values, strict=True)
        return keras.StatelessScope(pairs, collect_losses=True, initialize_variables=False)


class _Variables:
    """The variables of a model that a step reads, in an order that all models of a kind have in common.

    Attributes:
        changing: The variables that a step may change.
        all: All variables: `changing`, then the others.
    """

    def __init__(self, model: keras.Model):
        rate = learning_rate_of(model.optimizer)
        slots = [variable for variable in model.optimizer.variables if variable is not rate]
        changing = [*model.trainable_variables, *slots, *assigned_in_forward_pass(model), *model.metrics_variables]
        self.changing = _unique(changing)
        self.all = _unique([*changing, *model.variables, *model.optimizer.variables])


def _unique(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    return list({id(variable): variable for variable in variables}.values())


class _Copies:
    """Reads and writes all variables of a model in one call each, three times as fast as in one call per variable.

    Args:
        variables: The variables of the model.
    """

    def __init__(self, variables: _Variables):
        self._all = [variable.value for variable in variables.all]
        changing = [variable.value for variable in variables.changing]

        def read() -> list[tf.Tensor]:
            return _packed(_values(self._all))

        def write(packed: list[tf.Tensor]) -> None:
            _assign(changing, _unpacked(packed, changing))

        self.read, self.write = (tf.function(each, autograph=False) for each in (read, write))

    def are_of(self, variables: _Variables) -> bool:
        """Whether they are copies of these variables."""
        return [id(each) for each in self._all] == [id(variable.value) for variable in variables.all]


def _inputs(call: Call, copies: _Copies) -> dict[str, Any]:
    images, labels = _values([call.model.device_examples.images, call.model.device_examples.labels])
    return {"variables": copies.read(), "images": images, "labels": labels, **call.data}


def _by_dtype(tensors: Sequence[Any]) -> list[list[int]]:
    """Return the places of the tensors of each dtype."""
    dtypes = [tf.as_dtype(tensor.dtype) for tensor in tensors]
    return [[place for place, dtype in enumerate(dtypes) if dtype == each] for each in dict.fromkeys(dtypes)]


def _packed(tensors: Sequence[tf.Tensor], axes: int = 0) -> list[tf.Tensor]:
    """Return a tensor for each dtype, with its tensors concatenated after the first `axes` axes."""
    rows = [tf.reshape(tensor, [*tensor.shape[:axes], -1]) for tensor in tensors]
    return [tf.concat([rows[place] for place in places], axis=axes) for places in _by_dtype(tensors)]


def _unpacked(packed: Sequence[tf.Tensor], like: Sequence[Any]) -> list[tf.Tensor]:
    """Undo `_packed`; the tensors have the shapes and dtypes of `like`, after the leading axes of `packed`."""
    tensors: dict[int, tf.Tensor] = {}
    for values, places in zip(packed, _by_dtype(like), strict=True):
        shapes = [like[place].shape for place in places]
        parts = tf.split(values, [math.prod(shape) for shape in shapes], axis=-1)
        for place, part, shape in zip(places, parts, shapes, strict=True):
            tensors[place] = tf.reshape(part, [*values.shape[:-1], *shape])
    return [tensors[place] for place in range(len(like))]


def _state(model: keras.Model) -> list[Any]:
    """Return all variables of a model that its steps read or change, with its examples and its step record."""
    examples, record = model.device_examples, model.step_record
    return [*_Variables(model).all, examples.images, examples.labels, record.problem, record.taken]


def _values(variables: Sequence[Any]) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(variable) for variable in variables]


def _assign(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _where(chosen: tf.Tensor, new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """Return `new` for the models that are `chosen`, `old` for others; both are stacked."""
    return tf.where(tf.reshape(chosen, (-1, *[1] * (new.shape.rank - 1))), new, old)
