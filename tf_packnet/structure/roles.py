"""`Roles` decides what replaces each layer of a model in a pack: its task-aware twin, a head, or the layer itself."""

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
from tf_packnet.system.keras_internals import all_layers, own_trainable_variables, sublayers


@dataclass(frozen=True)
class Roles:
    """How the layers of a model are packed. Layers are given by their paths, see `places`.

    Attributes:
        heads: Dense layers that become heads, with separate weights for each task.
        exclude: Layers that are not changed, including the layers inside them. They are never trained.
        bias_policy: Policy for biases and normalization: `first_task` or `per_task`.
        pretrained: None, `prunable` or `visible`, see `tf_packnet.pruning.policies`.
    """

    heads: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    bias_policy: str = "first_task"
    pretrained: str | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "exclude"):  # lists if loaded from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values; `Roles(**values)` is the inverse."""
        return {**dataclasses.asdict(self), "heads": list(self.heads), "exclude": list(self.exclude)}

    def refused_layers(self, model: keras.Model) -> list[Refusal]:
        """Return the layers of `model` with weights that would belong to no task."""
        owners = refusals.variable_owners(model)
        found: list[Refusal] = []
        unchanged_prefixes: tuple[str, ...] = ()
        for place, layer in refusals.by_place(model).items():
            if place.startswith(unchanged_prefixes):
                continue
            if self._is_unchanged(layer, place) or isinstance(layer, TaskLayer):
                unchanged_prefixes += (f"{place}/",)
            else:
                reason = self._refusal_reason(layer, place, owners)
                found += [] if reason is None else [Refusal(place, layer, reason)]
        return found

    def replacement(self, layer: keras.Layer, place: str) -> keras.Layer:
        """Return the new, unbuilt layer that replaces `layer`; or `layer` itself, whose inner layers may be replaced.

        Args:
            layer: A layer.
            place: Its path.

        Raises:
            ArgumentError: If the layer has trainable weights that would belong to no task; the message names it.
        """
        if isinstance(layer, TaskLayer):
            return layer
        if self._is_unchanged(layer, place):
            for inner in all_layers(layer):  # `clone_model` would copy trainable layers
                inner.trainable = False
            return layer
        twin = self._twin(layer, place)
        if twin is not None:
            return twin
        reason = self._own_weights_reason(layer, place)
        if reason is not None:
            raise refusals.refused([Refusal(place, layer, reason)], layer.name)
        return layer

    def _is_unchanged(self, layer: keras.Layer, place: str) -> bool:
        return place in self.exclude or not layer.trainable

    def _twin(self, layer: keras.Layer, place: str) -> TaskLayer | None:
        if place not in self.heads and type(layer) not in TWINS:
            return None
        config = {**layer.get_config(), "name": _layer_name(place)}
        if place in self.heads:
            return TaskHead.from_config(config)
        task_settings = {"bias_policy": self.bias_policy, "pretrained": self.pretrained}
        return TWINS[type(layer)].from_config({**config, **task_settings})

    def _refusal_reason(self, layer: keras.Layer, place: str, owners: dict[int, tuple[str, keras.Layer]]) -> str | None:
        of_other_layers, untracked = refusals.foreign_variables(layer, owners)
        if of_other_layers:
            return f"that uses weights of other layers ({', '.join(of_other_layers)}): {_exclude_advice(place)}"
        if untracked:
            return (
                f"with variables that Keras tracks in no layer ({', '.join(untracked)}), like those of a stateful RNN: "
                "they would not be saved"
            )
        try:
            has_twin = self._twin(layer, place) is not None
        except Exception as error:  # raised by the twin, or by the layer's get_config()
            return f"whose twin cannot be created: {refusals.quoted(error)}"
        return None if has_twin else self._own_weights_reason(layer, place)

    def _own_weights_reason(self, layer: keras.Layer, place: str) -> str | None:
        names = ", ".join(variable.name for variable in own_trainable_variables(layer))
        if not names:
            return None
        return (
            f"with trainable weights ({names}) that would belong to no task: {_exclude_advice(place)}, or add a "
            "twin of the layer to tp.layers.TWINS"
        )


def _layer_name(place: str) -> str:
    """Return the last part of a path as a valid layer name; names of attributes and dict keys may be invalid."""
    name = place.rpartition("/")[2]
    return name if re.fullmatch(r"[\w.>-]*", name, re.ASCII) else "x_" + re.sub(r"[^\w.>-]", "_", name, flags=re.ASCII)


def _exclude_advice(place: str) -> str:
    return f"pass exclude=[{place!r}] to pack so that it is not trained"


def convert(model: keras.Model, replacement: Callable[[keras.Layer, str], keras.Layer]) -> keras.Model:
    """Replace the layers of a graph; layers that contain layers are changed in place.

    Args:
        model: A Sequential or functional model. It cannot be used afterwards.
        replacement: Takes a layer and its path; returns a new, unbuilt layer, or the same layer, whose inner layers are
            then converted.

    Returns:
        The new graph.

    Raises:
        ArgumentError: If a layer to replace is not held in an attribute, list, tuple or dict.
    """
    place_of = places.places(model)
    converted: dict[int, keras.Layer] = {}

    def visit(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.Layer):  # an operation such as `x + y`, which has no weights
            return layer
        if id(layer) not in converted:
            converted[id(layer)] = convert_layer(layer, place_of[id(layer)])
        return converted[id(layer)]

    def convert_layer(layer: keras.Layer, place: str) -> keras.Layer:
        new = replacement(layer, place)
        if new is not layer:
            if layer.built:
                new.build_from_config(layer.get_build_config())
            return new
        if not layer.trainable or isinstance(layer, TaskLayer):
            return layer
        if places.is_graph(layer):
            return keras.models.clone_model(layer, clone_function=visit)
        if sublayers(layer):
            _convert_children(layer, place, visit)
        return layer

    return keras.models.clone_model(model, clone_function=visit)


def _convert_children(owner: keras.Layer, place: str, visit: Callable[[keras.Layer], keras.Layer]) -> None:
    try:
        places.replace_children(owner, visit)
    except LookupError as error:
        (child,) = error.args
        raise ArgumentError(
            "model",
            f"layers that are held in attributes, lists, tuples or dicts. {child.name!r} in layer {place!r} (a "
            f"{type(owner).__name__}) is held elsewhere: pass exclude=[{place!r}] to pack",
            owner.name,
        ) from error
