"""Determines the axis of the classes in a network's output, and whether its values are logits or probabilities."""

import keras

from tf_packnet.layers.head import number_of_outputs
from tf_packnet.structure.output_heads import last_operation, output_heads


def class_axis_of(model: keras.Model) -> int:
    """Return the axis of the classes in the output of a network with one output; the last one if it is unknown."""
    head = output_heads(model, trace=False)[0]
    return len(model.outputs[0].shape) - 1 if head.layer is None else head.axis


def returns_probabilities(model: keras.Model) -> bool | None:
    """Return whether the last activation of a network with one output gives probabilities; None if it is unknown."""
    last = last_operation(model.outputs[0])
    if isinstance(last, keras.layers.Softmax):
        return True
    activation = getattr(last, "activation", None)
    is_head = isinstance(last, keras.layers.Activation) or number_of_outputs(last) is not None
    if is_head and activation is not None:
        return activation in (keras.activations.softmax, keras.activations.sigmoid)
    return None
