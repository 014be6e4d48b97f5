"""Makes layers store their weights without zeros: any layer of Keras or of a user, and the layers inside it.

In memory nothing changes: the layer computes with dense weights. `make_sparse` changes the class of a layer to a
generated subclass, which encodes weights when they are saved and decodes them when they are loaded.
"""

import functools
from typing import Any

import keras
import numpy as np

from tf_packnet.export.compaction import storage
from tf_packnet.export.compaction.storage import SparseArray
from tf_packnet.structure.layer_configs import creatable, remove_build_config
from tf_packnet.structure.layer_paths import is_graph
from tf_packnet.system.keras_internals import all_layers, own_variables
from tf_packnet.system.keras_layer import KerasLayer

# Name in Keras's registry, which is part of the config of every sparse layer.
_REGISTERED = {"package": "tf_packnet", "name": "SparseLayer"}
# Marks the names of arrays that are stored without zeros.
_WITHOUT_ZEROS = "without_zeros."


class SparseLayer(KerasLayer):
    """Mixin of the generated classes."""

    plain_class: type[keras.Layer]

    def save_own_variables(self, store: Any) -> None:
        """Save the arrays that the plain layer saves, without zeros (Keras's hook)."""
        arrays: dict[str, Any] = {}
        super().save_own_variables(arrays)
        for name, value in arrays.items():
            stored = storage.sparse_if_smaller(_array(value))
            if stored is None:
                store[name] = value
            else:
                store[_WITHOUT_ZEROS + name] = stored.to_bytes()

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` has saved (Keras's hook), and prepare the inner layers to do the same."""
        for layer in all_layers(self, include_self=False):
            _change_class(layer)
        names = {name.removeprefix(_WITHOUT_ZEROS): name for name in store.keys()}  # noqa: SIM118
        arrays = {
            short: store[name] if short == name else storage.to_dense(SparseArray.from_bytes(store[name]))
            for short, name in names.items()
        }
        super().load_own_variables(arrays)

    def get_config(self) -> dict[str, Any]:
        generated, layer = type(self), self
        layer.__class__ = self.plain_class
        try:
            serialized = keras.saving.serialize_keras_object(layer)
        finally:
            layer.__class__ = generated
        serialized["config"] = creatable(self.plain_class, serialized["config"])
        remove_build_config(self, serialized)
        return {"layer": serialized}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.Layer:
        return _change_class(keras.saving.deserialize_keras_object(config["layer"]))


keras.saving.register_keras_serializable(**_REGISTERED)(SparseLayer)


def make_sparse(layer: keras.Layer) -> None:
    """Make a built layer or model save its weights without zeros where that makes files smaller.

    Changes it in place.
    """
    if is_graph(layer):
        for inner in layer.layers:
            make_sparse(inner)
    elif any(_without_zeros(each) for each in all_layers(layer)):
        for each in all_layers(layer):
            if each is layer or own_variables(each):
                _change_class(each)


def make_plain(model: keras.Model) -> None:
    """Undo `make_sparse`."""
    for layer in all_layers(model):
        if isinstance(layer, SparseLayer):
            layer.__class__ = layer.plain_class


def sparse_arrays(model: keras.Model) -> dict[int, SparseArray]:
    """Return the variables of a model, by `id`, that files store without zeros after `make_sparse`."""
    layers = [layer for layer in all_layers(model) if isinstance(layer, SparseLayer)]
    return {key: array for layer in layers for key, array in _without_zeros(layer).items()}


def _without_zeros(layer: keras.Layer) -> dict[int, SparseArray]:
    """Return the layer's own variables, by `id`, that are smaller without zeros."""
    stored = {id(variable): storage.sparse_if_smaller(_array(variable)) for variable in own_variables(layer)}
    return {key: array for key, array in stored.items() if array is not None}


def _change_class(layer: keras.Layer) -> keras.Layer:
    if not isinstance(layer, SparseLayer):
        layer.__class__ = _sparse_class(type(layer))  # type: ignore[arg-type]  # no hash for mypy
    return layer


@functools.cache
def _sparse_class(plain: type[keras.Layer]) -> type[Any]:
    members = {"plain_class": plain, "__module__": __name__}
    cls = type(f"Sparse{plain.__name__}", (SparseLayer, plain), members)
    return keras.saving.register_keras_serializable(**_REGISTERED)(cls)


def _array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))
