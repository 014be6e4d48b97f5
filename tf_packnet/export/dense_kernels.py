"""A compact model for runtimes that know kernels with zeros only."""

import keras
from keras import ops

from tf_packnet.structure.graphs import copy_state

STORED_WITHOUT_ZEROS = ("entries", "gap_dtype")  # what the configs of such layers have beside Keras's


def with_dense_kernels(model: keras.Model) -> keras.Model:
    """The same model, in which kernels that are stored without their zeros are Keras's own.

    Args:
        model: What `compact_model` gave.
    """
    plain = keras.models.clone_model(model, clone_function=_plain)
    for source, target in zip(model._flatten_layers(), plain._flatten_layers(), strict=True):
        if type(source) is type(target):
            copy_state(source, target)
            continue
        target.kernel.assign(ops.convert_to_tensor(source.kernel))
        if target.bias is not None:
            target.bias.assign(source.bias)
    return plain


def _plain(layer: keras.Layer) -> keras.Layer:
    config = layer.get_config()
    if not set(STORED_WITHOUT_ZEROS) <= set(config):
        return type(layer).from_config(config)
    keras_layer = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("keras."))
    return keras_layer.from_config({key: value for key, value in config.items() if key not in STORED_WITHOUT_ZEROS})
