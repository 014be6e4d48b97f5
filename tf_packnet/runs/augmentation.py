"""Adds data augmentation in front of a network."""

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.layers.augmentation import Augmentation
from tf_packnet.runs.config import Config
from tf_packnet.structure.graphs import as_graph
from tf_packnet.system.keras_internals import as_function, continue_graph


def augmented(config: Config, model: keras.Model, input_shape: tuple[int, ...]) -> keras.Model:
    """Return `model` with an augmentation layer for `--augment` in front. All other layers are shared with `model`.

    Raises:
        ArgumentError: If the examples are not images.
    """
    if not config.augment:
        return model
    if len(input_shape) != 3:
        expected = f"no value for examples of shape {input_shape}: they are not images"
        raise ArgumentError("augment", expected, ",".join(config.augment))
    graph = as_graph(model)
    inputs = keras.Input(input_shape, dtype=graph.inputs[0].dtype, name="image")
    augmented_inputs = Augmentation(config.augment, name="augmentation")(inputs)
    # Calling the model would nest it as one layer of the new graph, which would change the paths of its layers.
    outputs = continue_graph(as_function(graph), [augmented_inputs])
    return keras.Model(inputs, outputs, name=model.name)
