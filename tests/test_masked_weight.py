"""What a masked kernel holds when a task begins."""

import numpy as np
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tf_packnet import lifecycle


@pytest.fixture
def weight():
    """A masked kernel, of which the first task owns some weights, and pruned the others."""
    packed = compile_model(tp.pack(make_mlp()))
    packed.begin_task("first")
    rounds = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(*blobs(1), epochs=1, verbose=0, callbacks=rounds)
    return next(iter(lifecycle.masked_weights(packed).values()))


@pytest.mark.parametrize("freed_weights", ["zero", "keep", "reinit"])
def test_begin_sets_the_trainable_variable_to_zero_outside_the_candidates(weight, freed_weights):
    weight.variable.assign(np.ones(weight.variable.shape))
    frozen = weight.frozen.numpy()
    owned = weight.owner_map() == 1
    assert owned.any()
    assert frozen[owned].all()
    assert not owned.all()

    weight.begin(2, freed_weights, seed=0)

    np.testing.assert_array_equal(weight.values()[owned], 0)
    start = weight.values()[~owned]
    if freed_weights == "zero":
        np.testing.assert_array_equal(start, 0)
    elif freed_weights == "keep":
        np.testing.assert_array_equal(start, frozen[~owned])
    else:
        assert start.all()
        assert not np.isin(start, [1.0, *frozen[~owned]]).any()
