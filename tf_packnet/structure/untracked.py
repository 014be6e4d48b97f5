"""Variables that a model computes with and Keras does not know of: nothing would save them or give them tasks."""

from typing import Any

import keras
import tensorflow as tf

from tf_packnet.structure import places
from tf_packnet.structure.refusals import Refusal
from tf_packnet.structure.state import metric_variables, unowned_variables


def of_untracked(model: keras.Model, called: keras.Model | None = None) -> list[Refusal]:
    """The layers of a functional or Sequential model that compute with variables which no layer lists.

    Args:
        model: The model.
        called: Which model to name where no layer of it can be; default itself.
    """
    layers = {"": (model.name, called or model)}
    layers |= {layer.path: (place, layer) for place, layer in places.by_place(model).items() if hasattr(layer, "path")}
    found: dict[str, list[str]] = {}
    for path in untracked(model):
        owner = path
        while owner not in layers:
            owner = owner.rpartition("/")[0]
        found.setdefault(owner, []).append(path)
    reason = "that computes with {}, held in no attribute, list, tuple or dict of a layer: nothing would save that"
    return [Refusal(*layers[owner], reason.format(", ".join(paths))) for owner, paths in found.items()]


def untracked(model: keras.Model) -> list[str]:
    """The variables that a call of `model` reads and no layer of it lists, by their paths; empty if it cannot be told.

    Args:
        model: A functional or Sequential model.
    """
    if tf.distribute.has_strategy():  # its variables are several each
        return []
    inputs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), _inputs(model))
    reads = _Reads()

    def call(x: Any) -> Any:
        with reads:
            return model(x, training=False)

    try:
        graph = tf.function(call, autograph=False).get_concrete_function(inputs).graph
    except Exception:  # whatever the code of a layer raises when TensorFlow traces it
        return []
    keras_variables = [*model.variables, *metric_variables(model)]
    known = {id(variable) for variable in keras_variables}
    known |= {id(variable) for variable in unowned_variables(model).values()}  # `tf.Variable`s in attributes
    variables = [variable for variable in reads.found.values() if id(variable) not in known]
    listed = known | {id(variable._value) for variable in (*keras_variables, *reads.found.values())}
    of_tensorflow = [variable for variable in graph.variables if id(variable) not in listed]
    return [variable.path for variable in variables] + [variable.name for variable in of_tensorflow]


def _inputs(model: keras.Model) -> Any:
    return model._inputs_struct if hasattr(model, "_inputs_struct") else model.inputs[0]


class _Reads(keras.StatelessScope):
    """While it lasts, the Keras variables that are read are noted; none is assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> Any:
        self.found[id(variable)] = variable
        return super().get_current_value(variable)
