"""`Roles`: what replaces each layer of a model in a pack (its task-aware twin, a head, or the layer itself)."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.layers import TWINS, TaskHead, TaskLayer
from tf_packnet.layers.head import number_of_outputs
from tf_packnet.pruning.policies import HEAD
from tf_packnet.structure import layer_paths, refusals
from tf_packnet.structure.generated import make_task_aware, own_saving_hooks, reserved_names, unreachable_weights
from tf_packnet.structure.refusals import Refusal
from tf_packnet.system.keras_internals import all_layers, own_trainable_variables, sublayers


@dataclass(frozen=True)
class Roles:
    """How the layers of a model are packed. Layers are given by their paths, see `layer_paths`.

    Attributes:
        heads: Layers that become heads, including the layers inside them: each task has its own weights of them. The
            number of outputs of a listed layer itself may differ between tasks.
        fixed_heads: The layers in `heads` whose number of outputs is the same for all tasks, because other heads follow
            them.
        exclude: Layers that stay unchanged, including the layers inside them. They are never trained.
        bias_policy: Policy for biases and normalization: `first_task` or `per_task`.
        pretrained: None, `prunable` or `visible`, see `tf_packnet.pruning.policies`.
        prune: Pairs of the path of a weight, such as `positions/table`, and whether it is pruned.
    """

    heads: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    bias_policy: str = "first_task"
    pretrained: str | None = None
    prune: tuple[tuple[str, bool], ...] = ()
    fixed_heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("heads", "exclude", "fixed_heads"):  # lists if loaded from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "prune", tuple((name, each) for name, each in self.prune))

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values; `Roles(**values)` is the inverse."""
        values = {**dataclasses.asdict(self), "heads": list(self.heads), "exclude": list(self.exclude)}
        later = {"prune": [list(each) for each in self.prune], "fixed_heads": list(self.fixed_heads)}
        for name, value in later.items():  # left out if empty, as in packs of earlier versions
            del values[name]
            values |= {name: value} if value else {}
        return values

    def with_paths(self, paths: Callable[[str], list[str]]) -> "Roles":
        """Return these roles for a model in which a layer with path `path` has the paths `paths(path)`."""
        prune = tuple((f"{new}/{weight}", each) for layer, weight, each in self._prune_parts() for new in paths(layer))
        heads, exclude = (tuple(new for path in old for new in paths(path)) for old in (self.heads, self.exclude))
        return dataclasses.replace(self, heads=heads, exclude=exclude, prune=prune)

    def _prune_parts(self) -> list[tuple[str, str, bool]]:
        """Return `prune` as layer, name of the weight in it, and whether it is pruned."""
        return [(*name.rpartition("/")[::2], each) for name, each in self.prune]

    def refused_layers(self, model: keras.Model) -> list[Refusal]:
        """Return the layers of `model` with weights that would belong to no task."""
        owners = refusals.variable_owners(model)
        found: list[Refusal] = []
        unchanged_prefixes: tuple[str, ...] = ()
        for path, layer in refusals.layers_by_path(model).items():
            if path.startswith(unchanged_prefixes):
                continue
            if self._is_unchanged(layer, path) or isinstance(layer, TaskLayer):
                unchanged_prefixes += (f"{path}/",)
            else:
                reason = self._refusal_reason(layer, path, owners)
                found += [] if reason is None else [Refusal(path, layer, reason)]
        return found

    def is_in_head(self, path: str) -> bool:
        """Return whether the layer at `path` is a head, or inside one."""
        return any(path == head or path.startswith(f"{head}/") for head in self.heads)

    def replacement(self, layer: keras.Layer, path: str) -> keras.Layer:
        """Return the new, unbuilt layer that replaces `layer`; or `layer` itself, whose inner layers may be replaced.

        Args:
            layer: A layer.
            path: Its path.

        Raises:
            ArgumentError: If the layer has trainable weights that would belong to no task; the message names it.
        """
        if isinstance(layer, TaskLayer):
            return layer
        if self._is_unchanged(layer, path):
            for inner in all_layers(layer):  # `clone_model` would copy trainable layers
                inner.trainable = False
            return layer
        twin = self._twin(layer, path)
        if twin is not None:
            return twin
        if not own_trainable_variables(layer):
            return layer
        reason = self._own_weights_reason(layer, path)
        if reason is not None:
            raise refusals.refused([Refusal(path, layer, reason)], layer.name)
        return make_task_aware(layer, **self._task_settings(path), is_head=self._is_head(layer, path))

    def _is_head(self, layer: keras.Layer, path: str) -> bool:
        return path in self.heads and path not in self.fixed_heads and number_of_outputs(layer) is not None

    def _task_settings(self, path: str) -> dict[str, Any]:
        if self.is_in_head(path):
            return {"bias_policy": HEAD, "pretrained": None, "prune": {}}
        return {"bias_policy": self.bias_policy, "pretrained": self.pretrained, "prune": self._prune_in(path)}

    def _is_unchanged(self, layer: keras.Layer, path: str) -> bool:
        return path in self.exclude or not layer.trainable

    def _twin(self, layer: keras.Layer, path: str) -> TaskLayer | None:
        is_head = self._is_head(layer, path)
        if type(layer) is not keras.layers.Dense and (is_head or type(layer) not in TWINS):
            return None
        config = {**layer.get_config(), "name": _layer_name(layer, path)}
        if is_head:
            return TaskHead.from_config(config)
        return TWINS[type(layer)].from_config({**config, **self._task_settings(path)})

    def _refusal_reason(self, layer: keras.Layer, path: str, owners: dict[int, tuple[str, keras.Layer]]) -> str | None:
        of_other_layers, untracked = refusals.foreign_variables(layer, owners)
        if of_other_layers:
            return f"that uses weights of other layers ({', '.join(of_other_layers)}): {_exclude_advice(path)}"
        if untracked:
            return (
                f"with variables that Keras tracks in no layer ({', '.join(untracked)}), like those of a stateful RNN: "
                "they would not be saved"
            )
        try:
            has_twin = self._twin(layer, path) is not None
        except Exception as error:  # raised by the twin, or by the layer's get_config()
            return f"whose twin cannot be created: {refusals.quoted(error)}"
        return None if has_twin else self._own_weights_reason(layer, path)

    def _own_weights_reason(self, layer: keras.Layer, path: str) -> str | None:
        if not own_trainable_variables(layer):
            return None
        reserved = ", ".join(reserved_names(layer, self._is_head(layer, path)))
        if reserved:
            return f"with attributes or methods that task-aware layers use ({reserved}): rename them"
        hooks = ", ".join(own_saving_hooks(layer))
        if hooks:
            return f"whose {hooks} would not be called: {_exclude_advice(path)}, or define its twin with tp.layers.twin"
        names = ", ".join(variable.name for variable in unreachable_weights(layer))
        if not names:
            return None
        return (
            f"with trainable weights ({names}) outside its attributes, lists, tuples and dicts: hold them in one of "
            f"these, or {_exclude_advice(path)}"
        )

    def _prune_in(self, path: str) -> dict[str, bool]:
        """Return the part of `prune` for the layer at `path`, by the names of its weights."""
        return {weight: each for layer, weight, each in self._prune_parts() if layer == path}


def _layer_name(layer: keras.Layer, path: str) -> str:
    """Return the last part of a path as a valid layer name; names of attributes and dict keys may be invalid."""
    name = path.rpartition("/")[2]
    if name == layer.name or re.fullmatch(r"[\w.>-]*", name, re.ASCII):
        return name
    return "x_" + re.sub(r"[^\w.>-]", "_", name, flags=re.ASCII)


def _exclude_advice(path: str) -> str:
    return f"pass exclude=[{path!r}] to pack so that it is not trained"


def convert(model: keras.Model, replacement: Callable[[keras.Layer, str], keras.Layer]) -> keras.Model:
    """Replace the layers of a graph. Layers that contain layers are changed in place.

    Args:
        model: A Sequential or functional model. It cannot be used afterwards.
        replacement: Takes a layer and its path; returns a new, unbuilt layer, or the same layer, whose inner layers are
            then converted.

    Returns:
        The new graph.

    Raises:
        ArgumentError: If a layer to replace is not held in an attribute, list, tuple or dict.
    """
    path_of = layer_paths.paths_by_id(model)
    converted: dict[int, keras.Layer] = {}

    def visit(layer: keras.Layer) -> keras.Layer:
        if not isinstance(layer, keras.Layer):  # an operation such as `x + y`, which has no weights
            return layer
        if id(layer) not in converted:
            converted[id(layer)] = convert_layer(layer, path_of[id(layer)])
        return converted[id(layer)]

    def convert_layer(layer: keras.Layer, path: str) -> keras.Layer:
        new = replacement(layer, path)
        if new is not layer:
            if layer.built:
                new.build_from_config(layer.get_build_config())
            return new
        if not layer.trainable:
            return layer
        if layer_paths.is_graph(layer):
            return keras.models.clone_model(layer, clone_function=visit)
        if sublayers(layer):
            _convert_children(layer, path, visit)
        return layer

    return keras.models.clone_model(model, clone_function=visit)


def _convert_children(owner: keras.Layer, path: str, visit: Callable[[keras.Layer], keras.Layer]) -> None:
    try:
        layer_paths.replace_children(owner, visit)
    except LookupError as error:
        (child,) = error.args
        raise ArgumentError(
            "model",
            f"layers that are held in attributes, lists, tuples or dicts. {child.name!r} in layer {path!r} (a "
            f"{type(owner).__name__}) is held elsewhere: pass exclude=[{path!r}] to pack",
            owner.name,
        ) from error
