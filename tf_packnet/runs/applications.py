"""The networks of `keras.applications`, for images of any size with 1 or 3 channels and values from 0 to 1."""

import contextlib
import difflib
import inspect
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tf_packnet.errors import ArgumentError, first_line, listed
from tf_packnet.runs.config import Config
from tf_packnet.runs.network_options import IMAGENET, application, parse_arguments

# Arguments of applications that this module sets itself.
RESERVED = ("include_top", "weights", "input_tensor", "classes", "classifier_activation", "name")
_CHANNELS = 3
# Timeout in seconds for connecting to the server of the weights, and for each read from it.
_NETWORK_SECONDS = 20.0


def names() -> list[str]:
    """Return the names of all networks in `keras.applications`."""
    return [name for name, value in vars(keras.applications).items() if inspect.isfunction(value)]


def find(config: Config) -> Callable[..., keras.Model]:
    """Return the function of `keras.applications` that `--model` names.

    Raises:
        ArgumentError: If there is no such function.
    """
    name = application(config.model) or ""
    if name not in names():
        by_lower = {known.lower(): known for known in names()}
        near = difflib.get_close_matches(name.lower(), by_lower, n=3)
        hint = f"did you mean {' or '.join(by_lower[each] for each in near)}?" if near else listed(names(), 8)
        raise ArgumentError("model", f"the name of a network in keras.applications ({hint})", config.model)
    return getattr(keras.applications, name)


def check_input_shape(config: Config) -> tuple[int, int] | None:
    """Return height and width in the `input_shape` of `--model_args`, None without one.

    Raises:
        ArgumentError: If it is not the shape of an image with 3 channels.
    """
    shape = parse_arguments(config.model_args).get("input_shape")
    if shape is None:
        return None
    is_shape = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    if not is_shape or shape[2] != _CHANNELS:
        raise ArgumentError("model_args", "an input_shape such as [96, 96, 3]", config.model_args)
    return shape[0], shape[1]


def build(config: Config, input_shape: tuple[int, ...], outputs: int) -> keras.Model:
    """Build an application without its top, with preprocessing layers in front and a Dense layer as head.

    Gray images are repeated over three channels. Images are resized if their size differs from `input_shape` in
    `--model_args`. Values are scaled to 0 to 255 and passed to the application's own `preprocess_input`.

    Args:
        config: The run.
        input_shape: Shape of an example.
        outputs: Number of logits.

    Raises:
        ArgumentError: If the application does not take these images or arguments, or its weights are not available.
    """
    make = find(config)
    if len(input_shape) != 3 or input_shape[2] not in (1, _CHANNELS):
        expected = f"mlp or your own function, for inputs of shape {input_shape} (applications need images of 1 or 3 "
        raise ArgumentError("model", f"{expected}channels)", config.model)
    height, width = check_input_shape(config) or input_shape[:2]
    arguments = {"pooling": "avg", **parse_arguments(config.model_args), "input_shape": (height, width, _CHANNELS)}
    x = inputs = keras.Input(input_shape, name="image")
    if input_shape[2] != _CHANNELS:
        x = keras.layers.Concatenate(name="gray_to_rgb")([x] * _CHANNELS)
    if (height, width) != input_shape[:2]:
        # Not a Resizing layer: with one, a call without `training` would run BatchNormalization in training mode.
        x = keras.ops.image.resize(x, (height, width))
    x = keras.layers.Rescaling(255.0, name="to_255")(x)
    x = sys.modules[make.__module__].preprocess_input(x)
    weights = IMAGENET if config.weights == IMAGENET else None
    with _errors_of_keras(config, (height, width)):
        backbone = make(include_top=False, weights=weights, input_tensor=x, **arguments)
    # float32 even in mixed precision: a loss of bfloat16 logits would be too coarse.
    head = keras.layers.Dense(outputs, dtype="float32", name="head")
    return keras.Model(inputs, head(backbone.output), name=application(config.model))


@contextlib.contextmanager
def _errors_of_keras(config: Config, size: tuple[int, int]) -> Iterator[None]:
    """Turn the errors of an application into one line; print its messages about a download on standard error."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the weights are for images of 224x224
            yield
    except MemoryError:
        raise
    except Exception as error:  # from Keras, h5py and the network
        reason = first_line(error)
        if "input size must be" in reason.lower():
            expected = (
                f"images of another size, not {size[0]}x{size[1]} ({reason.partition(';')[0]}). To resize them, give "
                """--model_args='{"input_shape": [96, 96, 3]}'"""
            )
            raise ArgumentError("model", expected, config.model) from error
        if config.weights == IMAGENET:
            expected = f"{IMAGENET} for a network that has such weights, on disk or from the network ({reason})"
            raise ArgumentError("weights", expected, config.weights) from error
        raise ArgumentError("model_args", f"arguments of {config.model} ({reason})", config.model_args) from error
    finally:
        socket.setdefaulttimeout(timeout)


def backbone_of(model: keras.Model) -> keras.Model:
    """Return the part of a model by `build` that is the application without its top.

    It shares the layers of the model.
    """
    head = model.get_layer("head")
    prepared: Any = model.get_layer("to_255").output
    return keras.Model(prepared, head.input)
