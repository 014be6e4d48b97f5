import keras
import numpy as np
import pytest

from tests.conftest import blobs, compile_model, make_mlp
from tests.test_freeze import OPTIMIZERS
from tf_packnet.training import optimizers

WITH_LOSS_SCALE = {**OPTIMIZERS, "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))}


def trained(optimizer):
    model = compile_model(make_mlp(), optimizer)
    optimizer.build(model.trainable_variables)
    initial = [np.array(v) for v in optimizer.variables]
    model.fit(*blobs(0), epochs=2, batch_size=16, verbose=0)
    return model, initial


@pytest.mark.parametrize("name", WITH_LOSS_SCALE)
def test_reset_restores_the_initial_values(name):
    optimizer = WITH_LOSS_SCALE[name]()
    _, initial = trained(optimizer)
    ids_before = list(map(id, optimizer.variables))
    assert any(not np.array_equal(value, first) for value, first in zip(optimizer.variables, initial, strict=True))
    optimizers.reset(optimizer)
    for value, first in zip(optimizer.variables, initial, strict=True):
        np.testing.assert_array_equal(value, first)
    assert list(map(id, optimizer.variables)) == ids_before


def test_reset_keeps_the_learning_rate():
    optimizer = keras.optimizers.Adam(0.01)
    trained(optimizer)
    optimizer.learning_rate = 1e-5
    optimizers.reset(optimizer)
    assert float(optimizer.learning_rate) == np.float32(1e-5)


def test_reset_does_nothing_to_an_optimizer_that_is_not_built():
    optimizers.reset(keras.optimizers.Adam())


@pytest.mark.parametrize("name", WITH_LOSS_SCALE)
def test_clear_slots_clears_one_weight_outside_the_mask(name):
    optimizer = WITH_LOSS_SCALE[name]()
    model, _ = trained(optimizer)
    kernel, other = model.get_layer("dense_1").kernel, model.get_layer("dense_2").kernel
    keep = np.random.default_rng(0).random(tuple(kernel.shape)) < 0.5
    before = {v.path: np.array(v) for v in optimizer.variables}
    optimizers.clear_slots(optimizer, kernel, keep)
    cleared = 0
    for variable in optimizer.variables:
        old = before[variable.path]
        if tuple(variable.shape) == tuple(kernel.shape):
            np.testing.assert_array_equal(variable, np.where(keep, old, 0))
            cleared += 1
        else:
            np.testing.assert_array_equal(variable, old)
    assert cleared >= 1
    assert tuple(other.shape) != tuple(kernel.shape)
