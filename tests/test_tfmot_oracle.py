"""At equal sparsity, this library and TF-MOT's own pruning keep the same weights."""

import os

import numpy as np
import pytest

from tf_packnet.pruning.ranking import keep_masks


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
