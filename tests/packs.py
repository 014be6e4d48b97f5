"""Small models to pack, and checks of packs, for several test modules."""

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tf_packnet import lifecycle

L = keras.layers
X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
register = keras.saving.register_keras_serializable("refusals")


def hidden(**kwargs):
    return L.Dense(6, activation="tanh", **kwargs)


def around(*layers):
    """A classifier with 6 inputs and `layers` in the middle."""
    inputs = x = keras.Input((6,))
    for layer in [L.Dense(6, name="first"), *layers, L.Dense(2, name="head")]:
        x = layer(x)
    return keras.Model(inputs, x, name="model")


def commit(packed, number, **begin):
    """Commit a task without training: random values, half of them kept."""
    rng = np.random.default_rng(number)
    packed.begin_task(f"task {number}", **begin)
    for layer in lifecycle.task_layers(packed):
        for weight in layer.task_weights + layer.masked_weights:
            weight.variable.assign(rng.normal(size=weight.variable.shape))
    for weight in lifecycle.masked_weights(packed).values():
        owner = weight.owner_map()
        weight.prune((owner == 255) & (rng.random(owner.shape) < 0.5))
    packed.commit_task()


def outputs(model):
    return [np.asarray(each) for each in keras.tree.flatten(model(X, training=False))]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_packs(model, folder, *begins):
    """Check that outputs are those of the model, and unchanged for two tasks after loading both files; export one."""
    packed = tp.pack(model)
    assert_same(outputs(packed), outputs(model))
    for number, begin in enumerate(begins or ({}, {}), start=1):
        commit(packed, number, **begin)
    packed.save(folder / "pack.keras")
    tp.save_pack(packed, folder / "pack.packnet")
    keras.utils.clear_session()  # as in a new process, which numbers its layers from the start
    for loaded in (keras.models.load_model(folder / "pack.keras"), tp.load_pack(folder / "pack.packnet")):
        assert list(loaded.owner_maps()) == list(packed.owner_maps())
        for number in range(1, packed.committed_tasks + 1):
            packed.select_task(number)
            loaded.select_task(number)
            assert_same(outputs(loaded), outputs(packed))
    for number in range(1, packed.committed_tasks + 1):
        packed.select_task(number)
        for ours, theirs in zip(outputs(tp.export.dense_model(packed, number)), outputs(packed), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    return packed


def graph(*layers, name):
    inputs = x = keras.Input((6,))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=name)


def refusal(model, **arguments):
    """Return the error message of `pack`, with one line per layer."""
    with pytest.raises(tp.ArgumentError) as caught:
        tp.pack(model, **arguments)
    text = str(caught.value)
    assert text.startswith("Invalid `model`: expected ")
    assert text.endswith(f". Received: model={model.name!r}")
    assert text.count("Layer '") == len(text.splitlines()) - ("\n" in text)
    return text
