"""The network of a pack as JSON, and back: of known classes only, and measured before it takes any memory."""

import json
import sys
from typing import Any

import keras

from tf_packnet.packed_model import PackedModel
from tf_packnet.packfile.coding import nbytes
from tf_packnet.system.keras_internals import global_state  # nothing public forgets variables that were only sketched

# What Keras writes for values that JSON has no word for.
_VALUES = {"__tuple__", "__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
_BASES = (
    keras.Operation,  # layers, models and functions of tensors
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.DTypePolicy,
    keras.dtype_policies.DTypePolicyMap,
)
# Where functions come from that Keras knows by name.
_FUNCTIONS = ("keras.activations", "keras.ops")
# Layers of Keras's that run code of others, or read it from a path.
_REFUSED = {"Lambda", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper"}
# Arguments of Keras's preprocessing layers that may be paths of files to read.
_PATHS = ("vocabulary", "idf_weights")


def to_json(packed: PackedModel) -> str:
    """The pack without its weights.

    Raises:
        Exception: If it cannot be made anew from that: a ValueError, or whatever Keras raises.
    """
    config = keras.saving.serialize_keras_object(packed)
    config.pop("compile_config", None)
    text = json.dumps(config)
    check(json.loads(text))
    _sketched(json.loads(text))
    return text


def from_json(text: str, most_bytes: int) -> PackedModel:
    """The pack of a text by `to_json`, with fresh weights.

    Args:
        text: The text.
        most_bytes: What its variables may take at most.

    Raises:
        ValueError: If it is no such text, of unknown classes, or its variables would take more.
        Exception: Whatever Keras raises at a config that it cannot use.
    """
    config = json.loads(text)
    check(config)
    needed = variable_bytes(_sketched(config))
    if needed > most_bytes:
        raise ValueError(f"needs {needed:,} bytes for its variables; load with max_bytes of as much to allow that")
    return _made(config)


def variable_bytes(model: keras.Model) -> int:
    """Bytes that the variables of a model take."""
    return sum(nbytes(v.dtype, v.shape) for v in model.variables if v.dtype != "string")


def _made(config: dict[str, Any]) -> PackedModel:
    packed = keras.saving.deserialize_keras_object(config, safe_mode=True)
    if not isinstance(packed, PackedModel):
        raise ValueError(f"is a {type(packed).__name__}, no pack")
    return packed


def _sketched(config: dict[str, Any]) -> PackedModel:
    """The pack with variables that have a shape, but no memory."""
    name = "uninitialized_variables"
    before = list(global_state.get_global_attribute(name, []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            return _made(json.loads(json.dumps(config)))  # Keras empties what it reads
    finally:
        global_state.set_global_attribute(name, before)


def check(config: Any) -> None:
    """Raises ValueError if `config` names anything but Keras's own modelling classes and registered ones."""
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
            raise ValueError(f"has the function {module}.{function}, which is neither Keras's nor registered")
        return
    if registered is not None and keras.saving.get_registered_object(registered) is not None:
        return
    of_keras = str(module).partition(".")[0] == "keras"
    found = getattr(sys.modules.get(module), name, None) if of_keras else None
    if name in _REFUSED or not (isinstance(found, type) and issubclass(found, _BASES)):
        raise ValueError(
            f"has a {module}.{name}, which is no class of Keras's for networks (of those not {', '.join(_REFUSED)}), "
            "and not registered with keras.saving.register_keras_serializable"
        )
    for path in _PATHS:
        if isinstance(config.get("config"), dict) and isinstance(config["config"].get(path), str):
            raise ValueError(f"has a {name} that reads its {path} from a file")
