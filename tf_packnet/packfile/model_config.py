"""Converts the network of a pack to JSON and back.

A config may only name known classes. The size of its variables is checked before memory is allocated.
"""

import contextlib
import json
import sys
from typing import Any

import keras

from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile import footprint
from tf_packnet.system.limits import Bound

# Class names that Keras writes for values that JSON cannot represent.
_VALUES = {"__tuple__", "__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
_BASES = (
    keras.Operation,  # layers, models and functions of tensors
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.DTypePolicy,
    keras.dtype_policies.DTypePolicyMap,
)
# Modules whose functions Keras finds by name.
_FUNCTIONS = ("keras.activations", "keras.ops")
# Packages whose classes are known. KerasHub does not register all of its layers.
_PACKAGES = ("keras", "keras_hub")
# Keras layers that run arbitrary code, or load it from a path.
_REFUSED = {"Lambda", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper"}
# Arguments of Keras's preprocessing layers that may be paths of files to read.
_PATHS = ("vocabulary", "idf_weights")


def to_json(packed: PackedModel) -> str:
    """Return the config of a pack, without its weights, as JSON.

    Raises:
        Exception: If the pack cannot be rebuilt from its config: a ValueError, or any error that Keras raises.
    """
    config = keras.saving.serialize_keras_object(packed)
    config.pop("compile_config", None)
    text = json.dumps(config)
    check(json.loads(text))
    with contextlib.suppress(footprint.UnknownSizeError):  # `save_pack` builds it when it reads the file back
        footprint.build_without_memory(json.loads(text), _build)
    return text


def from_json(text: bytes, bound: Bound, others: int = 0) -> PackedModel:
    """Build a pack from the text of `to_json`, with fresh weights.

    Args:
        text: The text.
        bound: Limit on the memory for loading the pack.
        others: Memory in bytes that the rest of the file takes.

    Raises:
        SizeError: If the network is too large.
        ValueError: If the text is invalid or names unknown classes.
        Exception: Any error that Keras raises for an invalid config.
    """
    config = footprint.parsed_config(text, bound)
    check(config)
    footprint.check(config, _build, bound, others)
    return _build(config)


def _build(config: dict[str, Any]) -> PackedModel:
    packed = keras.saving.deserialize_keras_object(config, safe_mode=True)
    if not isinstance(packed, PackedModel):
        raise ValueError(f"is a {type(packed).__name__}, not a pack")
    return packed


def check(config: Any) -> None:
    """Raise ValueError if `config` names anything but Keras's modelling classes and registered classes."""
    if isinstance(config, list):
        for part in config:
            check(part)
    elif isinstance(config, dict):
        if "class_name" in config:
            _check_class(config)
        for part in config.values():
            check(part)


def _check_class(config: dict[str, Any]) -> None:
    name, module, registered = (config.get(key) for key in ("class_name", "module", "registered_name"))
    if name in _VALUES:
        return
    if name == "function":
        function = config.get("config")
        if keras.saving.get_registered_object(function) is None and module not in _FUNCTIONS:
            raise ValueError(f"has the function {module}.{function}, which is neither from Keras nor registered")
        return
    if registered is not None and keras.saving.get_registered_object(registered) is not None:
        return
    keras_class = None
    if isinstance(name, str) and isinstance(module, str) and module.partition(".")[0] in _PACKAGES:
        keras_class = getattr(sys.modules.get(module), name, None)
    if name in _REFUSED or not (isinstance(keras_class, type) and issubclass(keras_class, _BASES)):
        raise ValueError(
            f"has a {module}.{name}, which is neither registered with keras.saving.register_keras_serializable nor "
            "one of Keras's layers, initializers, regularizers, constraints or dtype policies "
            f"(except {', '.join(sorted(_REFUSED))})"
        )
    for path in _PATHS:
        if isinstance(config.get("config"), dict) and isinstance(config["config"].get(path), str):
            raise ValueError(f"has a {name} that reads its {path} from a file")
