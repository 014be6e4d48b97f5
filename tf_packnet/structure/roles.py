"""What each layer of a model becomes in a pack: its masked twin, a head, itself, or an error that names it."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.layers import TWINS, TaskHead, TaskLayer
from tf_packnet.structure import places, refusals
from tf_packnet.structure.refusals import Refusal


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

    def objections(self, model: keras.Model) -> list[Refusal]:
        """The layers of `model` without a role: trainable weights of their own, or weights of others, have no task."""
        belongs = refusals.owners(model)
        found: list[Refusal] = []
        as_they_are: tuple[str, ...] = ()
        for place, layer in refusals.by_place(model).items():
            if place.startswith(as_they_are):
                continue
            if self._stays(layer, place) or isinstance(layer, TaskLayer):
                as_they_are += (f"{place}/",)
            else:
                reason = self._objection(layer, place, belongs)
                found += [] if reason is None else [Refusal(place, layer, reason)]
        return found

    def replacement(self, layer: keras.Layer, place: str) -> keras.Layer:
        """What `layer` becomes: a new layer, not built, or `layer` itself, whose own layers are then to be looked at.

        Raises:
            ArgumentError: If the layer has trainable weights that belong to no task; the message names it.
        """
        if isinstance(layer, TaskLayer):
            return layer
        if self._stays(layer, place):
            for inner in layer._flatten_layers():  # Keras makes those anew that can be trained
                inner.trainable = False
            return layer
        twin = self._twin(layer, place)
        if twin is not None:
            return twin
        reason = self._own_weights(layer, place)
        if reason is not None:
            raise refusals.refused([Refusal(place, layer, reason)], layer.name)
        return layer

    def _stays(self, layer: keras.Layer, place: str) -> bool:
        return place in self.exclude or not layer.trainable

    def _twin(self, layer: keras.Layer, place: str) -> TaskLayer | None:
        if place not in self.heads and type(layer) not in TWINS:
            return None
        config = {**layer.get_config(), "name": _layer_name(place)}
        if place in self.heads:
            return TaskHead.from_config(config)
        ours = {"bias_policy": self.bias_policy, "pretrained": self.pretrained}
        return TWINS[type(layer)].from_config({**config, **ours})

    def _objection(self, layer: keras.Layer, place: str, belongs: dict[int, tuple[str, keras.Layer]]) -> str | None:
        of_others, of_none = refusals.borrowed(layer, belongs)
        if of_others:
            return f"that keeps weights of others ({', '.join(of_others)}): {_excluding(place)}"
        if of_none:
            return (
                f"that keeps variables which Keras lists with no layer ({', '.join(of_none)}), as a stateful RNN does: "
                "nothing would save them"
            )
        try:
            has_twin = self._twin(layer, place) is not None
        except Exception as error:  # of the twin, or of the layer's get_config()
            return f"that has no twin as it is: {refusals.quoted(error)}"
        return None if has_twin else self._own_weights(layer, place)

    def _own_weights(self, layer: keras.Layer, place: str) -> str | None:
        own = ", ".join(variable.name for variable in layer._trainable_variables)
        if not own:
            return None
        return (
            f"with trainable weights of its own ({own}), which belong to no task: {_excluding(place)}, or add a twin "
            "of the layer to tp.layers.TWINS"
        )


def _layer_name(place: str) -> str:
    """What the layer at `place` is called: an attribute or the key of a dict may have a name that no layer can have."""
    name = place.rpartition("/")[2]
    return name if re.fullmatch(r"[\w.>-]*", name, re.ASCII) else "x_" + re.sub(r"[^\w.>-]", "_", name, flags=re.ASCII)


def _excluding(place: str) -> str:
    return f"give pack exclude=[{place!r}] so that it is not trained"


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
