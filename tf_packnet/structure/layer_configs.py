"""Corrects configs of layers that Keras can save but cannot load.

- The `get_config` of some layers returns values that their `__init__` computes, and does not accept as arguments.
- A layer without a `build` method creates the weights of its inner layers when it is called. Keras marks it as built
  when it loads it and, if the layer computes its output shape itself, never calls it.
"""

import copy
import inspect
from typing import Any

import keras

from tf_packnet.structure import layer_paths
from tf_packnet.system.keras_internals import as_function, sublayers


def creatable(cls: type[keras.Layer], config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a layer.

    Keys that `cls.__init__` does not accept are removed if it fails because of them.
    """
    if cls.from_config.__func__ is not keras.Layer.from_config.__func__:
        return config
    parameters = _parameters(cls)
    accepted = {name: value for name, value in config.items() if name in parameters}
    if len(accepted) == len(config):
        return config
    try:
        cls.from_config(copy.deepcopy(config))
    except Exception:  # raised by the layer's own code
        return accepted
    return config


def differs(config: Any, other: Any) -> bool:
    """Return whether two configs of a layer differ, apart from the build configs of inner layers."""
    return _comparable(config) != _comparable(other)


def make_creatable(graph: keras.Model, config: dict[str, Any]) -> None:
    """Change the config of a Sequential or functional model so that Keras can create and build all of its layers."""
    operations = {operation.name: operation for operation in as_function(graph).operations}
    for entry in config["layers"]:
        operation = operations.get(entry["name"] if "name" in entry else entry["config"].get("name"))
        if layer_paths.is_graph(operation):
            make_creatable(operation, entry["config"])
        elif isinstance(operation, keras.Layer) and entry["class_name"] == type(operation).__name__:
            entry["config"] = creatable(type(operation), entry["config"])
            remove_build_config(operation, entry)


def remove_build_config(layer: keras.Layer, serialized: dict[str, Any]) -> None:
    """Remove the build config of a layer that contains layers, so that its call builds it.

    Its class may have no `build` method, or one that does not accept the shapes in files, which are lists.
    """
    if sublayers(layer):
        serialized.pop("build_config", None)


def _parameters(cls: type[keras.Layer]) -> set[str]:
    """Return the keyword arguments of `cls.__init__` that a signature in its MRO names, and those of every layer."""
    names = set(inspect.signature(keras.Layer.__init__).parameters)
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {each.name for each in parameters}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    return names


def _comparable(config: Any) -> Any:
    if isinstance(config, dict):
        return {name: _comparable(value) for name, value in config.items() if name != "build_config"}
    return [_comparable(value) for value in config] if isinstance(config, (list, tuple)) else config
