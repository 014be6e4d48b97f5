"""Tasks whose targets are values: regression and several labels per example."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import tf_packnet as tp
from tf_packnet.tasks import from_arrays, from_dataset

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5)).astype("float32")
PRICES = X @ np.array([1.0, -2.0, 0.5, 0.0, 3.0]) + 0.25
TAGS = (X[:, :3] > 0).astype(int)


@pytest.mark.parametrize(
    ("y", "shape", "names"),
    [
        (PRICES, (), ("output",)),
        (PRICES[:, None], (1,), ("output",)),
        (pd.Series(PRICES), (), ("output",)),
        (TAGS, (3,), ("output_1", "output_2", "output_3")),
        (TAGS.astype(bool), (3,), ("output_1", "output_2", "output_3")),
        (pd.DataFrame(TAGS), (3,), ("output_1", "output_2", "output_3")),
    ],
)
def test_values_are_recognized(y, shape, names):
    task = from_arrays("t", X, y, batch_size=8)
    train, validation, test = (task.splits[name] for name in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (43, 5, 12)
    assert (task.class_names, task.num_classes) == (names, len(names))
    assert train.y.dtype == np.float32
    assert train.y.shape == (43, *shape)
    rows = np.concatenate([split.x for split in (train, validation, test)])
    values = np.concatenate([split.y for split in (train, validation, test)])
    order = [np.flatnonzero((row == X).all(axis=1))[0] for row in rows]
    assert sorted(order) == list(range(60))
    np.testing.assert_array_equal(values, np.asarray(y).astype("float32")[order])


def test_whole_numbers_are_classes_unless_said_otherwise():
    ages = np.arange(60) % 3
    assert from_arrays("t", X, ages, batch_size=8).num_classes == 3
    assert from_arrays("t", X, ages[:, None], batch_size=8).num_classes == 3
    assert from_arrays("t", X, pd.Series(["a", "b", "a"] * 20), batch_size=8).class_names == ("a", "b")
    assert from_arrays("t", X, pd.Categorical(["a", "b", "a"] * 20), batch_size=8).class_names == ("a", "b")
    task = from_arrays("t", X, ages, batch_size=8, targets="values", class_names=["age"])
    assert (task.num_classes, task.class_names) == (1, ("age",))
    assert task.splits["train"].y.dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": PRICES[:-1]}, "`y`: expected labels of shape .60,., or values of shape"),
        ({"y": np.zeros((60, 2, 2))}, "`y`: expected labels of shape"),
        ({"y": np.where(PRICES > 0, PRICES, np.nan)}, "`y`: expected finite numbers"),
        ({"y": np.array([["a", "b"]] * 60)}, "`y`: expected numbers, because the targets are values"),
        ({"y": TAGS, "targets": "classes"}, "`y`: expected one label for each example"),
        ({"y": PRICES, "targets": "classes"}, "`y`: expected class numbers or names, or targets='values'"),
        ({"y": PRICES, "targets": "tags"}, "`targets`: expected one of classes, values"),
        ({"y": TAGS, "class_names": ["a"]}, "`class_names`: expected 3, one for each output in y"),
        ({"y": TAGS, "class_names": ["a", "b", "a"]}, "`class_names`: expected a different name"),
        ({"y": TAGS, "test": (X, PRICES)}, "`test`: expected values of shape .3,. for each example, like y"),
    ],
)
def test_bad_targets_are_blamed(arguments, message):
    with pytest.raises(tp.ArgumentError, match=message):
        from_arrays("t", X, **arguments)


@pytest.mark.parametrize("batch", [None, 7])
@pytest.mark.parametrize("y", [PRICES, TAGS, TAGS[:, 0], TAGS[:, :1]])
def test_data_sets_batched_or_not(y, batch):
    dataset = tf.data.Dataset.from_tensor_slices((X, y))
    task = from_dataset("t", dataset if batch is None else dataset.batch(batch), batch_size=8)
    expected = from_arrays("t", X, y, batch_size=8)
    for name, split in task.splits.items():
        np.testing.assert_array_equal(split.x, expected.splits[name].x)
        np.testing.assert_array_equal(split.y, expected.splits[name].y)


@pytest.mark.parametrize(
    ("y", "loss"), [(PRICES, "mse"), (TAGS, keras.losses.BinaryCrossentropy(from_logits=True))], ids=["values", "tags"]
)
@pytest.mark.parametrize("resident", [True, False])
def test_packs_learn_values_and_keep_them(y, loss, resident):
    tasks = tp.tasks.TaskStream(
        "t", [from_arrays("a", X, y, batch_size=8), from_arrays("b", X[:50], 1 - y[:50], batch_size=8)]
    )
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    packed = tp.pack(keras.Model(inputs, keras.layers.Dense(tasks.num_classes)(hidden)))
    packed.compile(keras.optimizers.Adam(0.02), loss)
    learned = {}
    for task in tasks:
        packed.begin_task(task.name, task.num_classes)
        batches = task.training_batches(1, resident)
        losses = packed.fit(batches, epochs=8, verbose=0, validation_data=task.validation).history["loss"]
        assert losses[-1] < 0.95 * losses[0]
        train = task.splits["train"]
        scheduler = tp.PruneRoundScheduler(tp.EqualShare(0.3, 2), criterion="taylor", data=(train.x, train.y))
        packed.fit(task.train, epochs=1, verbose=0, callbacks=[scheduler, tp.GradientMask(), tp.TaskMaskSnapshot()])
        learned[task.name] = packed.predict(X, verbose=0)
    packed.select_task("a")
    np.testing.assert_array_equal(packed.predict(X, verbose=0), learned["a"])
