"""`pack(model)`: a Keras model in, its masked twin out, ready to learn task after task."""

import keras

from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.layers import TWINS, TaskHead
from tf_packnet.layers.weights import check_freed_weights
from tf_packnet.packed_model import PackedModel
from tf_packnet.policies import BIAS_POLICIES, HEADS


def pack(
    model: keras.Model,
    head: str = "per_task",
    bias_policy: str = "first_task",
    freed_weights: str = "zero",
    seed: int = 0,
) -> PackedModel:
    """Makes the masked twin of a Keras model: same topology, same starting weights, room for many tasks.

    Args:
        model: A built Sequential or functional model of the layers that `tp.layers` has twins of (dense, convolutions
            of all kinds, embeddings, normalisation) and of layers without trainable weights. It is left as it was.
        head: `per_task`: the final `Dense` becomes an unpruned head of which each task has its own; `shared`: it is
            masked and pruned like the rest, and serves all tasks.
        bias_policy: `first_task`: biases and normalisation are trained by task 1, then frozen; `per_task`: each task
            has its own.
        freed_weights: How the weights that a task gives back start the next one: `zero`, `keep` or `reinit`.
        seed: Seeds the draws of later tasks (heads, `reinit`).

    Returns:
        A `PackedModel`; its first `begin_task` opens all of its weights.

    Raises:
        ArgumentError: If an argument is unknown, or a layer cannot be packed; the message names it.
    """
    check_choice("head", head, HEADS)
    check_choice("bias_policy", bias_policy, BIAS_POLICIES)
    check_freed_weights(freed_weights)
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ArgumentError("model", "a Sequential model with an Input, or a functional model", model)
    head_layer = _head_layer(model) if head == "per_task" else None

    def twin(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if layer is head_layer:
            return TaskHead.from_config(config)
        if type(layer) in TWINS and layer.trainable:
            return TWINS[type(layer)].from_config({**config, "bias_policy": bias_policy})
        if layer.trainable_weights:
            packable = ", ".join(known.__name__ for known in TWINS)
            raise ArgumentError(
                "model",
                f"layers among {packable}, without trainable weights, or with trainable=False (one value for all "
                f"tasks); layer {layer.name!r} is a {type(layer).__name__}",
                model.name,
            )
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=twin, recursive=True)
    _copy_weights(model, clone)
    sequential = isinstance(clone, keras.Sequential)
    return PackedModel(
        clone.inputs[0] if sequential else clone.input,
        clone.outputs[0] if sequential else clone.output,
        head=head,
        freed_weights=freed_weights,
        seed=seed,
        name=model.name,
    )


def _head_layer(model: keras.Model) -> keras.layers.Dense:
    layer = model.layers[-1]
    if type(layer) is not keras.layers.Dense or len(model.outputs) != 1:
        raise ArgumentError(
            "model",
            "a model with one output that ends in a Dense layer, the head of which each task gets its own "
            f"(or head='shared'); the last layer {layer.name!r} is a {type(layer).__name__}",
            model.name,
        )
    return layer


def _copy_weights(source: keras.Model, target: keras.Model) -> None:
    for old, new in zip(source._flatten_layers(), target._flatten_layers(), strict=True):
        own = {v.name: v for v in new._trainable_variables + new._non_trainable_variables}
        for variable in old._trainable_variables + old._non_trainable_variables:
            own[variable.name].assign(variable)
