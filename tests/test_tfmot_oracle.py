"""At equal sparsity, this library and TF-MOT's own pruning keep the same weights."""

import os
import warnings

import keras
import numpy as np
import pytest

import tf_packnet as tp
from tf_packnet import lifecycle
from tf_packnet.pruning.patterns import parse_pattern
from tf_packnet.pruning.ranking import keep_masks, keep_pattern_masks


def test_tf_keras_was_left_alone():
    import tensorflow as tf

    import tf_packnet.pruning.tfmot  # noqa: F401

    assert tf.keras.__version__.startswith("3.")
    assert "TF_USE_LEGACY_KERAS" not in os.environ


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.75, 0.9, 0.99])
def test_layer_scope_keeps_what_prune_low_magnitude_keeps(sparsity):
    import tensorflow_model_optimization as tfmot
    import tf_keras

    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    rng = np.random.default_rng(int(100 * sparsity))
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Conv2D(6, 3, input_shape=(8, 8, 2)),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(11),
        ]
    )
    model.set_weights([rng.normal(size=w.shape).astype("float32") for w in model.get_weights()])
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    constant = tfmot.sparsity.keras.ConstantSparsity(sparsity, begin_step=0, frequency=1)
    pruned = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=constant)
    pruned.compile("sgd", "mse")
    pruned.optimizer.learning_rate = 0.0  # masks are updated at the start of a step; so that no weight changes
    step = tfmot.sparsity.keras.UpdatePruningStep()
    pruned.fit(np.zeros((4, 8, 8, 2)), np.zeros((4, 11)), epochs=1, verbose=0, callbacks=[step])
    theirs = [w for w in tfmot.sparsity.keras.strip_pruning(pruned).get_weights() if w.ndim > 1]

    # TF-MOT keeps round(n * (1 - s)) of n weights, in float32. Here the same count is given as a fraction of n.
    for kernel, their in zip(kernels, theirs, strict=True):
        count = int(np.count_nonzero(their))
        assert count == round(kernel.size * (1 - sparsity))
        everything = [np.ones(kernel.shape, bool)]
        (ours,) = keep_masks([np.abs(kernel)], everything, [kernel.size], 1 - sparsity, "layer")
        np.testing.assert_array_equal(ours, their != 0)


def tfmot_mask(kernel, sparsity, **pattern):
    """The mask that TF-MOT's pruning of a layer computes for a kernel."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_impl import Pruning

    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    pattern = {"block_size": (1, 1), "block_pooling_type": "AVG", **pattern}
    schedule = tfmot.sparsity.keras.ConstantSparsity(sparsity, begin_step=0, frequency=1)
    _, mask = Pruning(lambda: 1, [], schedule, **pattern)._maybe_update_block_mask(tf.constant(kernel))
    return np.asarray(mask) != 0


@pytest.mark.parametrize("shape", [(8, 5), (10, 3), (7, 4), (3, 3, 8, 5), (1, 1, 6, 7)])
@pytest.mark.parametrize(("zeros", "size"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])
def test_n_m_pattern_keeps_what_sparsity_m_by_n_keeps(shape, zeros, size):
    kernel = np.random.default_rng(size).normal(size=shape).astype("float32")
    theirs = tfmot_mask(kernel, 0.5, sparsity_m_by_n=(zeros, size))
    groups = parse_pattern(f"{size - zeros}:{size}")
    everything, axes = np.ones(shape, bool), (len(shape) - 2,)
    np.testing.assert_array_equal(groups.preferred(np.abs(kernel), everything, axes), theirs)
    inputs, last = shape[-2], shape[-2] % size
    kept = inputs // size * (size - zeros) + min(last, size - zeros)
    assert np.count_nonzero(theirs) == kernel.size // inputs * kept
    if not last:  # then the pattern is the sparsity
        (ours,) = keep_pattern_masks([groups], [axes], [np.abs(kernel)], [everything], [everything], 1 - zeros / size)
        np.testing.assert_array_equal(ours, theirs)


# Where two or more columns or rows are missing in the last block, TF-MOT pools other blocks than it prunes.
@pytest.mark.parametrize("shape", [(8, 12), (7, 12), (8, 11)])
@pytest.mark.parametrize("block", [(4, 4), (4, 1), (1, 4), (2, 3), (2, 2)])
@pytest.mark.parametrize(("theirs", "ours"), [("AVG", ""), ("MAX", ":max")])
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_block_pattern_keeps_what_block_size_keeps(shape, block, theirs, ours, sparsity):
    if any(-length % size > 1 for length, size in zip(shape, block, strict=True)):
        pytest.skip("TF-MOT pools other blocks than it prunes")
    kernel = np.random.default_rng(1).normal(size=shape).astype("float32")
    their_mask = tfmot_mask(kernel, sparsity, block_size=block, block_pooling_type=theirs)
    pattern, everything = parse_pattern(f"{block[0]}x{block[1]}{ours}"), np.ones(shape, bool)
    (mask,) = keep_pattern_masks([pattern], [()], [np.abs(kernel)], [everything], [everything], 1 - sparsity)
    np.testing.assert_array_equal(mask, their_mask)
    blocks = -(-shape[0] // block[0]) * -(-shape[1] // block[1])
    assert np.count_nonzero(pattern.units(mask)) == round(blocks * (1 - sparsity))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ConstantSparsity", {"target_sparsity": 0.5, "begin_step": 0, "frequency": 4}),
        ("ConstantSparsity", {"target_sparsity": 0.75, "begin_step": 3, "end_step": 3, "frequency": 1}),
        ("PolynomialDecay", {"initial_sparsity": 0.2, "begin_step": 0, "end_step": 9, "frequency": 2}),
        ("PolynomialDecay", {"initial_sparsity": 0.0, "begin_step": 2, "end_step": 8, "frequency": 3}),
    ],
)
def test_the_steps_and_masks_are_those_of_tfmot(name, arguments):
    """TF-MOT's pruning, and ours with a `fit` of learning rate 0, after each of 12 steps."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_impl import Pruning

    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    arguments = arguments if "target_sparsity" in arguments else {"final_sparsity": 0.8, **arguments}
    schedule = getattr(tfmot.sparsity.keras, name)(**arguments)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(7)])
    sparse = tp.sparsify(model)
    sparse.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    ours = []
    seen = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ours.append(kernel_mask(sparse)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, y = np.zeros((12, 6), "float32"), np.zeros((12, 7), "float32")
        sparse.fit(x, y, batch_size=1, epochs=1, verbose=0, callbacks=[tp.PruneStepScheduler(schedule), seen])

    kernel = tf.Variable(model.layers[0].kernel)
    mask, threshold = tf.Variable(tf.ones_like(kernel)), tf.Variable(0.0)
    step = tf.Variable(0, dtype=tf.int64)
    pruning = Pruning(lambda: step, [(kernel, mask, threshold)], schedule, (1, 1), "AVG")
    for number in range(12):
        step.assign_add(1)
        pruning.conditional_mask_update()
        np.testing.assert_array_equal(ours[number], np.asarray(mask) != 0, err_msg=f"step {number + 1}")
    assert 0 < np.count_nonzero(ours[-1]) < kernel.shape[0] * kernel.shape[1]


def kernel_mask(sparse):
    (weight,) = lifecycle.masked_weights(sparse).values()
    return weight.owner_map() == 255
