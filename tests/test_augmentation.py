"""Random changes of training images inside the network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tf_packnet.errors import ArgumentError
from tf_packnet.export.dense import dense_model
from tf_packnet.layers.augmentation import CHANGES, Augmentation
from tf_packnet.runs import networks, setup
from tf_packnet.runs.config import Config
from tf_packnet.runs.network_options import AUGMENTATIONS
from tf_packnet.runs.stages import chain

X = np.random.default_rng(0).random((6, 8, 8, 3)).astype("float32")


def built(shape=(8, 8, 3), **fields):
    return networks.build(Config(hidden_units=(6,), **fields), shape, 2)


def test_the_flag_names_the_changes():
    assert tuple(CHANGES) == AUGMENTATIONS


@pytest.mark.parametrize("name", CHANGES)
def test_only_training_images_are_changed(name):
    layer = Augmentation([name])
    np.testing.assert_array_equal(layer(X), X)
    np.testing.assert_array_equal(layer(X, training=False), X)
    changed = np.asarray(layer(X, training=True))
    assert changed.shape == X.shape
    assert 0 <= changed.min() < changed.max() <= 1
    assert not np.array_equal(changed, X)
    again = Augmentation.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(again(X, training=True), changed)  # the same seed


def test_flip_and_crop_move_pixels():
    flipped = np.asarray(Augmentation(["flip"])(X, training=True))
    assert all(
        np.array_equal(new, old) or np.array_equal(new, old[:, ::-1]) for new, old in zip(flipped, X, strict=True)
    )
    for new, old in zip(np.asarray(Augmentation(["crop"])(X, training=True)), X, strict=True):
        margin = np.pad(old, ((1, 1), (1, 1), (0, 0)))
        windows = [margin[row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
        assert any(np.array_equal(new, window) for window in windows)


@pytest.mark.parametrize("model", ["mlp", "conv", "own"])
def test_the_network_behind_it_is_the_same(model, tmp_path):
    if model == "own":
        (tmp_path / "net.py").write_text(
            "import keras\n"
            "def net(shape, classes):\n"
            "    layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(4)]\n"
            "    inner = keras.Sequential(layers, name='inner')\n"
            "    return keras.Sequential([inner, keras.layers.Dense(classes, name='out')])\n"
        )
        model = f"{tmp_path / 'net.py'}:net"
    keras.utils.set_random_seed(1)
    plain = built(model=model)
    keras.utils.set_random_seed(1)
    model = built(model=model, augment=("flip", "rotate"))
    assert [each.path for each in model.weights if "seed" not in each.path] == [
        each.path for each in plain.weights if "seed" not in each.path
    ]
    np.testing.assert_array_equal(model(X), plain(X))
    np.testing.assert_array_equal(model(X), model(X, training=False))
    assert [type(layer) for layer in model.layers][1] is Augmentation


def test_examples_that_are_no_images_are_refused():
    with pytest.raises(ArgumentError, match=r"`augment`: expected no value for examples of shape \(8,\)"):
        built((8,), augment=("flip",))


def test_stage_keys():
    keys = [
        chain(Config(augment=augment), (1,), "data", {})[0].key
        for augment in ((), ("flip",), ("flip", "crop"), ("crop", "flip"))
    ]
    assert len(set(keys)) == 4


def test_packs_and_exports(tmp_path):
    config = Config(hidden_units=(6,), augment=tuple(AUGMENTATIONS), train_epochs=1, retrain_epochs=1, prune_rounds=1)
    stream = tp.tasks.load("digits", num_tasks=2, batch_size=32)
    packed = setup.build_model(config, stream)
    packed.compile("adam", **setup.build_loss(config, stream), jit_compile="auto")
    packed.begin_task("0-1", num_classes=2)
    packed.fit(stream[0].training_batches(1), verbose=0)
    retraining = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2, 1)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(stream[0].training_batches(2), verbose=0, callbacks=retraining)
    x = stream[0].splits["test"].x[:9]
    expected = packed.predict(x, verbose=0)
    packed.save(tmp_path / "pack.keras")
    tp.save_pack(packed, tmp_path / "a.packnet")
    for loaded in (keras.models.load_model(tmp_path / "pack.keras"), tp.load_pack(tmp_path / "a.packnet")):
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
        (layer,) = [layer for layer in loaded.layers if isinstance(layer, Augmentation)]
        assert layer.changes == AUGMENTATIONS
    dense = dense_model(packed, 1)
    assert not any("augment" in type(layer).__name__.lower() for layer in dense.layers)
    np.testing.assert_allclose(dense.predict(x, verbose=0), expected, atol=1e-6)
    for compact in (False, True):
        tp.export_task(packed, "0-1", tmp_path / "export", compact=compact)
        served = tf.saved_model.load(str(tmp_path / "export"))
        operations = {each.type for each in served.signatures["serving_default"].graph.get_operations()}
        assert not {each for each in operations if "Random" in each or "Projective" in each}
