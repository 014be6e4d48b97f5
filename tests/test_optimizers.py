import keras
import numpy as np
import pytest

from tests.conftest import blobs, compile_model, make_mlp
from tests.test_freeze import OPTIMIZERS
from tf_packnet.training import optimizers

WITH_LOSS_SCALE = {**OPTIMIZERS, "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))}


def trained(optimizer):
    model = compile_model(make_mlp(), optimizer)
    initial = None
    optimizer.build(model.trainable_variables)
    initial = [np.array(v) for v in optimizer.variables]
    model.fit(*blobs(0), epochs=2, batch_size=16, verbose=0)
    return model, initial


@pytest.mark.parametrize("name", WITH_LOSS_SCALE)
def test_reset_puts_every_variable_back(name):
    optimizer = WITH_LOSS_SCALE[name]()
    _, initial = trained(optimizer)
    same_objects = list(map(id, optimizer.variables))
    assert any(not np.array_equal(now, then) for now, then in zip(optimizer.variables, initial, strict=True))
    optimizers.reset(optimizer)
    for now, then in zip(optimizer.variables, initial, strict=True):
        np.testing.assert_array_equal(now, then)
    assert list(map(id, optimizer.variables)) == same_objects


def test_reset_leaves_the_learning_rate_as_it_is():
    optimizer = keras.optimizers.Adam(0.01)
    trained(optimizer)
    optimizer.learning_rate = 1e-5
    optimizers.reset(optimizer)
    assert float(optimizer.learning_rate) == np.float32(1e-5)


def test_reset_leaves_an_unbuilt_optimizer_alone():
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
        then = before[variable.path]
        if tuple(variable.shape) == tuple(kernel.shape):
            np.testing.assert_array_equal(variable, np.where(keep, then, 0))
            cleared += 1
        else:
            np.testing.assert_array_equal(variable, then)
    assert cleared >= 1
    assert tuple(other.shape) != tuple(kernel.shape)
