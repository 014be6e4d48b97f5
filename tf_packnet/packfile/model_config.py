"""Converts the network of a pack to JSON and back.

Only known classes are allowed, and the size of the variables is checked before memory is allocated.
"""

import json
import sys
from typing import Any

import keras

from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile.coding import nbytes
from tf_packnet.system.keras_internals import global_state  # no public API forgets variables without memory

# Class names that Keras writes for values that JSON does not have.
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
    _without_memory(json.loads(text))
    return text


def from_json(text: str, max_bytes: int) -> PackedModel:
    """Build a pack from the text of `to_json`, with fresh weights.

    Args:
        text: The text.
        max_bytes: Largest allowed size of its variables.

    Raises:
        ValueError: If the text is invalid, names unknown classes, or its variables are too large.
        Exception: Any error that Keras raises for an invalid config.
    """
    config = json.loads(text)
    check(config)
    needed = variable_bytes(_without_memory(config))
    if needed > max_bytes:
        raise ValueError(f"needs {needed:,} bytes for its variables; load with max_bytes={needed} to allow that")
    return _build(config)


def variable_bytes(model: keras.Model) -> int:
    """Return the size of the variables of a model in bytes."""
    return sum(nbytes(v.dtype, v.shape) for v in model.variables if v.dtype != "string")


def _build(config: dict[str, Any]) -> PackedModel:
    packed = keras.saving.deserialize_keras_object(config, safe_mode=True)
    if not isinstance(packed, PackedModel):
        raise ValueError(f"is a {type(packed).__name__}, not a pack")
    return packed


def _without_memory(config: dict[str, Any]) -> PackedModel:
    """Build the pack with variables that have shapes but no memory."""
    name = "uninitialized_variables"
    before = list(global_state.get_global_attribute(name, []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            return _build(json.loads(json.dumps(config)))  # a copy, because Keras removes keys from the config
    finally:
        global_state.set_global_attribute(name, before)


def check(config: Any) -> None:
    """Raise ValueError if `config` names something else than Keras's modelling classes and registered classes."""
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
    if isinstance(name, str) and isinstance(module, str) and module.partition(".")[0] == "keras":
        keras_class = getattr(sys.modules.get(module), name, None)
    if name in _REFUSED or not (isinstance(keras_class, type) and issubclass(keras_class, _BASES)):
        raise ValueError(
            f"has a {module}.{name}, which is neither one of Keras's layers, initializers, regularizers, constraints "
            f"or dtype policies (except {', '.join(sorted(_REFUSED))}) nor registered with "
            "keras.saving.register_keras_serializable"
        )
    for path in _PATHS:
        if isinstance(config.get("config"), dict) and isinstance(config["config"].get(path), str):
            raise ValueError(f"has a {name} that reads its {path} from a file")
