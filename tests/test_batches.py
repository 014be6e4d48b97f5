"""Training batches: the order of the examples, the same for resident and streamed ones; evaluation batches."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_packnet.errors import ArgumentError
from tf_packnet.tasks import batches
from tf_packnet.tasks.batches import ResidentBatches, StreamedBatches, epoch_order, evaluation_batches


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_an_epoch_has_no_example_twice_and_omits_less_than_a_batch(examples, batch_size, seed, epoch):
    order = epoch_order(examples, batch_size, seed, epoch).numpy()
    assert order.shape == (examples // batch_size, batch_size)
    assert len(set(order.ravel())) == order.size
    assert set(order.ravel()) <= set(range(examples))
    np.testing.assert_array_equal(order, epoch_order(examples, batch_size, seed, epoch).numpy())


def test_orders_differ_between_epochs_and_seeds():
    orders = {epoch_order(50, 50, seed, epoch).numpy().tobytes() for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_all_orders_are_equally_likely():
    """Each of the 6 orders of three examples occurs about 100 times in 600 epochs (chi-square test, df = 5)."""
    seen = [tuple(epoch_order(3, 3, 0, epoch).numpy().ravel()) for epoch in range(600)]
    counts = [seen.count(order) for order in itertools.permutations(range(3))]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 20.5  # p = 0.001


def make(kind, examples=23, **kwargs):
    images = np.arange(examples * 6, dtype=np.uint8).reshape(examples, 2, 3, 1)
    return kind(images, np.arange(examples, dtype=np.int32), 1 / 256, batch_size=4, seed=3, **kwargs)


def unrolled(batches, epochs, first_epoch=0):
    """The labels of every batch in the calls, after a check that the images belong to them."""
    seen = []
    for call in batches.dataset(first_epoch).take(batches.calls * epochs):
        for number in range(int(call["steps"])):
            if "rows" in call:
                rows = call["rows"][number].numpy()
                images, labels = batches.images[rows], batches.labels[rows]
            else:
                images, labels = call["images"][number].numpy(), call["labels"][number].numpy()
            np.testing.assert_array_equal(images[:, 0, 0, 0], labels * 6 % 256)
            seen.append(labels.tolist())
    return seen


@pytest.mark.parametrize("steps_per_call", [1, 2, 3, 100])
@pytest.mark.parametrize("room", [0, 30])
def test_calls_of_any_size_have_the_same_batches(steps_per_call, room):
    expected = [batch.tolist() for epoch in range(3) for batch in epoch_order(23, 4, 3, epoch).numpy()]
    for kind in (StreamedBatches, ResidentBatches):
        batches = make(kind, room=room, steps_per_call=steps_per_call)
        assert batches.steps == 5
        assert unrolled(batches, epochs=3) == expected
        assert unrolled(batches, epochs=1, first_epoch=2) == expected[10:]
    singles = make(StreamedBatches).single_batches(first_epoch=1)
    assert [y.numpy().tolist() for _, y in singles.take(10)] == expected[5:]


@pytest.mark.parametrize("kind", [StreamedBatches, ResidentBatches])
def test_invalid_arguments(kind):
    images, labels = np.zeros((5, 2)), np.zeros(5, np.int32)
    for arguments, message in [
        ((images, labels[:4], 1.0, 2), "`labels`: expected one for each of the 5 images. Received: labels=4"),
        ((images, labels, 1.0, 6), "`batch_size`: expected 1 to the 5 examples. Received: batch_size=6"),
        ((images, labels, 1.0, 0), "`batch_size`: expected 1 to the 5 examples. Received: batch_size=0"),
        ((images, labels, 1.0, 2, 0, 0, 0), "`steps_per_call`: expected at least 1"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            kind(*arguments)


def test_single_batches_are_decoded():
    for x, y in make(StreamedBatches).single_batches().take(5):
        assert x.dtype == "float32"
        np.testing.assert_array_equal(x[:, 0, 0, 0], y.numpy() * 6 % 256 / np.float32(256))


@pytest.mark.parametrize("kind", [StreamedBatches, ResidentBatches])
def test_calls_have_one_shape_for_all_tasks_with_the_same_room(kind):
    specs = [make(kind, examples=n, room=30).dataset().element_spec for n in (9, 23, 30)]
    assert specs[0] == specs[1] == specs[2]


@pytest.mark.parametrize("examples", [0, 3, 8, 23])
@pytest.mark.parametrize("batch_size", [4, 9, 100])
def test_evaluation_batches_are_in_order(examples, batch_size):
    labels = np.arange(examples, dtype=np.int32)
    images = np.tile(labels.astype(np.uint8)[:, None, None], (1, 2, 3))
    dataset = evaluation_batches(images, labels, 1 / 256, batch_size)
    expected = [labels[first : first + batch_size].tolist() for first in range(0, examples, batch_size)]
    for _ in range(2):  # Keras creates an iterator for each evaluation
        seen = list(dataset)
        assert [y.numpy().tolist() for _, y in seen] == expected
        assert dataset.cardinality() == len(expected)
        for x, y in seen:
            assert (x.dtype, x.shape[1:]) == ("float32", (2, 3))
            np.testing.assert_array_equal(x[:, 1, 2], y.numpy() / np.float32(256))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**31 - 1), st.data())
def test_a_shorter_epoch_continues_the_pass_of_the_one_before(batch_size, steps, seed, data):
    examples = batch_size * steps + data.draw(st.integers(0, batch_size - 1))
    epoch_steps = data.draw(st.integers(1, steps))
    passes = np.concatenate([epoch_order(examples, batch_size, seed, number).numpy() for number in range(5)])
    epochs = [epoch_order(examples, batch_size, seed, epoch, epoch_steps).numpy() for epoch in range(5)]
    assert {epoch.shape for epoch in epochs} == {(epoch_steps, batch_size)}
    np.testing.assert_array_equal(np.concatenate(epochs), passes[: 5 * epoch_steps])


def test_shorter_epochs_are_the_same_resident_and_streamed():
    expected = [batch.tolist() for epoch in range(4) for batch in epoch_order(23, 4, 3, epoch, 3).numpy()]
    for kind in (StreamedBatches, ResidentBatches):
        batches = make(kind, epoch_steps=3, steps_per_call=2)
        assert (batches.steps, batches.calls) == (3, 2)
        assert unrolled(batches, 4) == expected
        assert unrolled(batches, 2, first_epoch=2) == expected[6:]
    singles = make(StreamedBatches, epoch_steps=3).single_batches().take(12)
    assert [labels.numpy().tolist() for _, labels in singles] == expected


@pytest.mark.parametrize("epoch_steps", [0, 6])
def test_an_epoch_has_at_most_one_pass(epoch_steps):
    with pytest.raises(ArgumentError, match="1 to the 5 full batches"):
        make(StreamedBatches, epoch_steps=epoch_steps)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int32"])
def test_examples_that_take_much_memory_are_decoded_batch_by_batch(dtype, monkeypatch):
    images = np.arange(7 * 6, dtype=dtype).reshape(7, 2, 3)
    labels, scale = np.arange(7, dtype=np.int32), np.float32(1 / 255)
    at_once = list(evaluation_batches(images, labels, scale, 3).as_numpy_iterator())
    monkeypatch.setattr(batches, "_DECODED_BYTES", 4 * images.size)
    assert not batches.decoded_in_batches(images)
    monkeypatch.setattr(batches, "_DECODED_BYTES", 4 * images.size - 1)
    assert batches.decoded_in_batches(images)
    one_by_one = list(evaluation_batches(images, labels, scale, 3).as_numpy_iterator())
    assert [len(x) for x, _ in one_by_one] == [3, 3, 1]
    for ours, theirs in zip(one_by_one, at_once, strict=True):
        for each, expected in zip(ours, theirs, strict=True):
            assert each.dtype == expected.dtype
            np.testing.assert_array_equal(each, expected)
