"""What each layer of a model becomes in a pack: its masked twin, a head, itself, or an error that names it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.layers import TWINS, TaskHead, TaskLayer
from tf_packnet.structure import places


@dataclass(frozen=True)
class Roles:
    """Which layers of a model are treated in which way; they are named by their place, see `places`.

    Attributes:
        heads: Dense layers of which every task has its own.
        exclude: Layers that stay as they are, with all that is in them: one value for all tasks, never trained.
        bias_policy: What later tasks do to biases and normalisation: `first_task` or `per_task`.
        pretrained: None, or what becomes of pretrained kernels: `prunable` or `visible`.
    """

    heads: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    bias_policy: str = "first_task"
    pretrained: str | None = None

    def __post_init__(self):
        for name in ("heads", "exclude"):  # lists, when they come from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `Roles(**values)` is the inverse."""
        return {**dataclasses.asdict(self), "heads": list(self.heads), "exclude": list(self.exclude)}

    def replacement(self, layer: keras.Layer, place: str) -> keras.Layer:
        """What `layer` becomes: a new layer, not built, or `layer` itself, whose own layers are then to be looked at.

        Raises:
            ArgumentError: If the layer has trainable weights that belong to no task; the message names it.
        """
        if isinstance(layer, TaskLayer):
            return layer
        if place in self.exclude or not layer.trainable:
            for inner in layer._flatten_layers():  # Keras makes those anew that can be trained
                inner.trainable = False
            return layer
        config = layer.get_config()
        config["name"] = place.rpartition("/")[2]
        if place in self.heads:
            return TaskHead.from_config(config)
        if type(layer) in TWINS:
            ours = {"bias_policy": self.bias_policy, "pretrained": self.pretrained}
            return TWINS[type(layer)].from_config({**config, **ours})
        of_its_own = layer._trainable_variables + (layer._non_trainable_variables if layer._layers else [])
        if of_its_own:
            raise ArgumentError(
                "model",
                f"no trainable weights outside the layers that tp.layers.TWINS lists. Layer {place!r} is a "
                f"{type(layer).__name__} with weights of its own ({', '.join(v.name for v in of_its_own)}): give pack "
                f"exclude=[{place!r}] to keep it as it is for all tasks, or the layer a twin",
                layer.name,
            )
        return layer


def convert(model: keras.Model, role: Callable[[keras.Layer, str], keras.Layer]) -> keras.Model:
    """The same graph of what `role` makes of its layers; a layer made of layers is changed in place.

    Args:
        model: A Sequential or functional model, which is of no use after that.
        role: Takes a layer and its place and returns another, not built, or the same, whose own layers follow.

    Raises:
        ArgumentError: If a layer to change is held where nothing can take its place.
    """
    found = places.places(model)
    done: dict[int, keras.Layer] = {}

    def visit(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.Layer):  # an operation such as `x + y`, which holds nothing
            return layer
        if id(layer) not in done:
            done[id(layer)] = changed(layer, found[id(layer)])
        return done[id(layer)]

    def changed(layer: keras.Layer, place: str) -> keras.Layer:
        new = role(layer, place)
        if new is not layer:
            if layer.built:
                new.build_from_config(layer.get_build_config())
            return new
        if not layer.trainable or isinstance(layer, TaskLayer):
            return layer
        if places.is_graph(layer):
            return keras.models.clone_model(layer, clone_function=visit)
        if layer._layers:
            _convert_children(layer, place, visit)
        return layer

    return keras.models.clone_model(model, clone_function=visit)


def _convert_children(owner: keras.Layer, place: str, visit: Callable[[keras.Layer], keras.Layer]) -> None:
    try:
        places.swap_children(owner, visit)
    except LookupError as error:
        (child,) = error.args
        raise ArgumentError(
            "model",
            f"layers that are held in attributes, lists, tuples or dicts. {child.name!r} in layer {place!r} (a "
            f"{type(owner).__name__}) is held elsewhere: give pack exclude=[{place!r}]",
            owner.name,
        ) from error
