"""Scores weights by data: magnitude times activation (Wanda), and the first-order Taylor expansion of the loss."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.layers import masked
from tf_packnet.pruning.policies import TAYLOR
from tf_packnet.system.keras_internals import clear_losses, compute_loss

# Layers whose output, without the activation, is linear in a kernel that multiplies their input.
_LINEAR = (
    *(masked.MaskedDense, masked.MaskedEinsumDense),
    *(masked.MaskedConv1D, masked.MaskedConv2D, masked.MaskedConv3D),
    *(masked.MaskedConv1DTranspose, masked.MaskedConv2DTranspose, masked.MaskedConv3DTranspose),
    *(masked.MaskedDepthwiseConv1D, masked.MaskedDepthwiseConv2D),
)

# Batch size for examples given as arrays.
_BATCH = 64


def checked_data(data: Any, criterion: str) -> Any:
    """Return the examples for a criterion: arrays, or a finite data set.

    Raises:
        ArgumentError: If they are neither, or there are none.
    """
    expected = f"examples (x, y) or a finite tf.data.Dataset of batches, because of criterion={criterion!r}"
    if isinstance(data, tf.data.Dataset):
        size = int(data.cardinality())
        if size in (tf.data.INFINITE_CARDINALITY, 0):
            raise ArgumentError("data", expected, "a data set that repeats forever" if size else "an empty data set")
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ArgumentError("data", expected, type(data).__name__)
    x, y = (each if isinstance(each, np.ndarray) else np.asarray(each) for each in data)
    if not x.ndim or not y.ndim or len(x) != len(y) or len(x) == 0:
        raise ArgumentError("data", expected, f"arrays of shape {x.shape} and {y.shape}")
    return x, y


def batches_of(data: Any) -> Iterable[tuple[Any, Any]]:
    """Divide the examples for a criterion into batches `(x, y)`."""
    if isinstance(data, tuple):
        x, y = data
        return ((x[i : i + _BATCH], y[i : i + _BATCH]) for i in range(0, len(x), _BATCH))
    return (keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in data)


def scores(model: keras.Model, criterion: str, batches: Iterable[tuple[Any, Any]]) -> dict[str, np.ndarray]:
    """Score the weights of the selected task by data, without changing the model.

    Args:
        model: A compiled model with masked layers.
        criterion: `activation`: the magnitude of a weight times the norm of its inputs over all examples and positions
            (Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models"). `taylor`: the mean
            over the batches of the squared product of a weight and its gradient (Molchanov et al. 2019, "Importance
            Estimation for Neural Network Pruning", equation 8).
        batches: Batches `(x, y)`, at least one.

    Returns:
        Scores by weight path, shaped like the kernels, `float32`.

    Raises:
        ArgumentError: If `activation` is not defined for a layer of the model.
    """
    weights = lifecycle.masked_weights(model)
    if criterion == TAYLOR:
        sums = _squared_products(model, batches)
        return {path: sums[path] for path in weights}
    squares = _squared_inputs(model, batches)
    return {path: np.abs(weight.importance()) * np.sqrt(squares[path]) for path, weight in weights.items()}


def check_defined(model: keras.Model, criterion: str) -> None:
    """Raise ArgumentError if a criterion is not defined for a layer of `model`."""
    if criterion == TAYLOR:
        return
    for path, layer in lifecycle.named_layers(model):
        if layer.masked_weights and not isinstance(layer, _LINEAR):
            kinds = "dense and convolution layers"
            expected = (
                f"taylor or magnitude: activation is defined for {kinds}, not for {path} ({type(layer).__name__})"
            )
            raise ArgumentError("criterion", expected, criterion)


def _squared_products(model: keras.Model, batches: Iterable[tuple[Any, Any]]) -> dict[str, np.ndarray]:
    weights = lifecycle.masked_weights(model)
    sums = {path: np.zeros(weight.owner.shape, np.float32) for path, weight in weights.items()}
    count = 0
    for x, y in batches:
        with tf.GradientTape() as tape:
            loss = compute_loss(model, x, y, model(x, training=False), None)
        gradients = tape.gradient(loss, [weight.variable.value for weight in weights.values()])
        for (path, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                sums[path] += np.square(np.asarray(tf.convert_to_tensor(gradient)) * weight.importance())
        count += 1
    clear_losses(model)
    model.reset_metrics()  # the losses of several outputs are metrics
    return {path: total / max(1, count) for path, total in sums.items()}


def _squared_inputs(model: keras.Model, batches: Iterable[tuple[Any, Any]]) -> dict[str, np.ndarray]:
    """Return, for each entry of a kernel, the sum of the squares of the inputs that it multiplies.

    The output of such a layer is linear in its kernel. With squared inputs, the derivative of the sum of all outputs
    with respect to an entry is therefore this sum.
    """
    sums: dict[str, np.ndarray] = {}
    for x, _ in batches:
        with _recorded_inputs(model) as calls:
            model(x, training=False)
        for path, layer, inputs in calls:
            (weight,) = layer.masked_weights
            kernel = tf.convert_to_tensor(weight.own_value())
            with tf.GradientTape() as tape, weight.substitute(kernel), _without_activation(layer):
                tape.watch(kernel)
                total = tf.reduce_sum(layer.call(tf.square(tf.cast(inputs, kernel.dtype))))
            squares = np.asarray(tape.gradient(total, kernel), np.float32)
            sums[f"{path}/{weight.name}"] = sums.get(f"{path}/{weight.name}", np.float32(0)) + squares
    clear_losses(model)
    unused = {
        path: np.zeros(weight.owner.shape, np.float32) for path, weight in lifecycle.masked_weights(model).items()
    }
    return {**unused, **sums}


@contextlib.contextmanager
def _recorded_inputs(model: keras.Model) -> Iterator[list[tuple[str, Any, tf.Tensor]]]:
    """Within the block, record the inputs of each call of the layers with a masked weight."""
    calls: list[tuple[str, Any, tf.Tensor]] = []
    layers = [(path, layer) for path, layer in lifecycle.named_layers(model) if layer.masked_weights]

    def recording(path: str, layer: Any) -> Any:
        def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append((path, layer, tf.convert_to_tensor(inputs)))
            return type(layer).call(layer, inputs, *args, **kwargs)

        return call

    for path, layer in layers:
        object.__setattr__(layer, "call", recording(path, layer))
    try:
        yield calls
    finally:
        for _, layer in layers:
            object.__delattr__(layer, "call")


@contextlib.contextmanager
def _without_activation(layer: Any) -> Iterator[None]:
    activation = layer.activation
    object.__setattr__(layer, "activation", None)
    try:
        yield
    finally:
        object.__setattr__(layer, "activation", activation)
