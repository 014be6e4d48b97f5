"""Pruning a plain Keras model: `sparsify`, `PruneStepScheduler`, patterns and `strip_pruning`."""

import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_convnet, make_mlp
from tf_packnet import lifecycle
from tf_packnet.layers.input_axes import input_axes
from tf_packnet.pruning.patterns import parse_pattern
from tf_packnet.pruning.ranking import PRUNE_SCOPES, keep_masks, keep_pattern_masks
from tf_packnet.training.fit_checks import FitRequest

L = keras.layers


class At:
    """A schedule with a round at each step (or epoch) that is a key, to the sparsity that is its value."""

    def __init__(self, sparsities):
        self.sparsities = sparsities

    def __call__(self, step):
        return int(step) in self.sparsities, self.sparsities.get(int(step), 0.0)


class Until(At):
    """The same with the attributes of TF-MOT's schedules."""

    def __init__(self, sparsities):
        super().__init__(sparsities)
        self.begin_step, self.end_step, self.frequency = min(sparsities), max(sparsities), 1


def step(model, scheduler, steps=1):
    """Call the callback as Keras does in `steps` steps, without training."""
    for _ in range(steps):
        scheduler.on_train_batch_begin(0)
        model.optimizer.iterations.assign_add(1)


def prune_rounds(model, scheduler, epochs):
    """Call a `PruneRoundScheduler` as Keras does in a `fit`, without training."""
    scheduler.set_params({"epochs": epochs})
    scheduler.set_model(model)
    scheduler.on_train_begin()
    for epoch in range(epochs):
        scheduler.on_epoch_begin(epoch)


def begun(model, *arguments, **keywords):
    scheduler = tp.PruneStepScheduler(*arguments, **keywords)
    scheduler.set_model(model)
    scheduler.on_train_begin()
    return scheduler


def kernels(model):
    return {weight.path: np.asarray(weight) for weight in model.weights if len(weight.shape) > 1}


def kept(model):
    return [int(np.count_nonzero(mask)) for mask in masks_of(model)]


def masks_of(model):
    return [weight.owner_map() == 255 for weight in lifecycle.masked_weights(model).values()]


def sparse_mlp(**arguments):
    return compile_model(tp.sparsify(make_mlp(), **arguments), keras.optimizers.SGD(0.1))


@pytest.mark.parametrize("make", [make_mlp, pytest.param(make_convnet, marks=pytest.mark.slow)])
def test_training_pruning_and_stripping(make):
    model = make()
    before = [np.array(weight) for weight in model.get_weights()]
    x, y = blobs(0, model.input_shape[1:])
    sparse = compile_model(tp.sparsify(model))
    np.testing.assert_array_equal(sparse(x), model(x))
    rounds = tp.PruneStepScheduler(At({2: 0.3, 4: 0.8}))
    logs = sparse.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[rounds]).history
    final = tp.strip_pruning(sparse)
    sizes = [kernel.size for kernel in kernels(final).values()]
    assert [np.count_nonzero(kernel) for kernel in kernels(final).values()] == [round(0.2 * size) for size in sizes]
    assert kept(sparse) == [round(0.2 * size) for size in sizes]
    assert logs["sparsity"] == [1 - sum(kept(sparse)) / sum(sizes)] * 2
    assert {type(layer).__module__.partition(".")[0] for layer in final.layers} == {"keras"}
    np.testing.assert_array_equal(final(x), sparse(x))
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    # Without the callback, the weights that remain are trained further.
    sparse.fit(x, y, verbose=0)
    further = kernels(tp.strip_pruning(sparse))
    for kernel, other in zip(kernels(final).values(), further.values(), strict=True):
        np.testing.assert_array_equal(kernel != 0, other != 0)
        assert (kernel != other).any()


@pytest.mark.slow
def test_a_saved_model_goes_on_as_if_it_had_not_been_saved(tmp_path):
    x, y = blobs(0)
    schedule = At({3: 0.4, 6: 0.7})

    def fit(model, **arguments):
        rounds = tp.PruneStepScheduler(schedule)
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[rounds], **arguments)
        return model

    whole = fit(compile_model(tp.sparsify(make_mlp())), epochs=2)
    keras.utils.set_random_seed(0)
    half = fit(compile_model(tp.sparsify(make_mlp())), epochs=1)
    half.save(tmp_path / "half.keras")
    loaded = fit(keras.models.load_model(tmp_path / "half.keras"), epochs=1)
    assert kept(loaded) == [round(0.3 * size) for size in (72, 120, 20)]
    for one, other in zip(whole.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_own_training_loop():
    x, y = blobs(0)
    sparse = tp.sparsify(make_mlp())
    sparse.optimizer = keras.optimizers.Adam()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scheduler = begun(sparse, At({2: 0.5}), pattern="2:4")
    for epoch in range(2):
        for batch in range(2):
            scheduler.on_train_batch_begin(batch)
            with tf.GradientTape() as tape:
                value = loss(y, sparse(x, training=True))
            gradients = tape.gradient(value, sparse.trainable_variables)
            sparse.optimizer.apply_gradients(zip(gradients, sparse.trainable_variables, strict=True))
        scheduler.on_epoch_end(epoch)
    assert kept(sparse) == [36, 60, 10]


class TestWhenRoundsTakePlace:
    def test_steps_count_from_one_and_go_on_in_the_next_fit(self):
        sparse = sparse_mlp()
        asked = []
        scheduler = begun(sparse, lambda number: (asked.append(int(number)), (False, 0.0))[1])
        step(sparse, scheduler, 3)
        scheduler.on_train_end()
        step(sparse, begun(sparse, scheduler.schedule), 2)
        assert asked == [1, 2, 3, 4, 5]

    def test_rounds_within_one_call_are_run_before_the_next_or_at_the_end_of_the_epoch(self):
        sparse = sparse_mlp()
        scheduler = begun(sparse, At({2: 0.5, 3: 0.25, 8: 0.75}))
        scheduler.on_train_batch_begin(0)
        sparse.optimizer.iterations.assign_add(4)
        assert kept(sparse) == [72, 120, 20]
        scheduler.on_train_batch_begin(4)
        assert kept(sparse) == [36, 60, 10]
        sparse.optimizer.iterations.assign_add(4)
        scheduler.on_epoch_end(0, {})
        assert kept(sparse) == [18, 30, 5]

    def test_pruned_weights_do_not_come_back(self):
        sparse = sparse_mlp()
        step(sparse, begun(sparse, At({1: 0.75, 2: 0.5, 3: 0.75})), 3)
        assert kept(sparse) == [18, 30, 5]

    def test_a_fit_that_ends_too_early_warns(self):
        sparse = sparse_mlp()
        scheduler = begun(sparse, Until({1: 0.5, 9: 0.8}))
        step(sparse, scheduler, 8)
        with pytest.warns(UserWarning, match=r"ended after step 8, but the last prune round is at step 9"):
            scheduler.on_train_end()
        scheduler = begun(sparse, scheduler.schedule)
        step(sparse, scheduler)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.on_train_end()


class TestWhatIsPruned:
    @pytest.mark.parametrize(
        "layers", [["dense_2"], lambda layer: layer.name == "dense_2", lambda layer: layer.units == 10]
    )
    def test_layers_that_are_chosen(self, layers):
        sparse = sparse_mlp(layers=layers)
        assert list(sparse.owner_maps()) == ["dense_2/kernel"]
        assert len(sparse.trainable_variables) == 6
        step(sparse, begun(sparse, At({1: 0.75})))
        final = tp.strip_pruning(sparse)
        assert [np.count_nonzero(kernel) for kernel in kernels(final).values()] == [72, 30, 20]

    def test_schedules_and_patterns_by_layer(self):
        sparse = sparse_mlp()
        schedule = {"dense_1": At({1: 0.75}), "head": At({2: 0.5})}
        scheduler = begun(sparse, schedule, {"dense_1": "1:4", "head": "5x1"})
        step(sparse, scheduler)
        assert kept(sparse) == [18, 120, 20]
        step(sparse, scheduler)
        assert kept(sparse) == [18, 120, 10]

    def test_nested_layers_by_the_name_of_the_model_around_them(self):
        inner = keras.Sequential([keras.Input((6,)), L.Dense(8), L.Dense(8)], name="inner")
        model = keras.Sequential([keras.Input((6,)), inner, L.Dense(4, name="last")])
        sparse = compile_model(tp.sparsify(model))
        step(sparse, begun(sparse, {"inner": At({1: 0.5})}))
        assert kept(sparse) == [24, 32, 32]

    def test_a_pattern_alone_is_applied_once_before_the_first_step(self):
        sparse = sparse_mlp()
        values = [np.abs(weight.values()) for weight in lifecycle.masked_weights(sparse).values()]
        scheduler = begun(sparse, pattern="2:4")
        step(sparse, scheduler, 2)
        # In groups of 4 inputs: 6 inputs keep 2 + 2, 12 keep 6, 10 keep 2 + 2 + 2.
        assert kept(sparse) == [12 * 4, 10 * 6, 2 * 6]
        for unit in range(12):
            assert set(np.flatnonzero(masks_of(sparse)[0][:4, unit])) == set(np.argsort(values[0][:4, unit])[2:])

    def test_epochs_instead_of_steps(self):
        sparse = sparse_mlp()
        rounds = tp.PruneRoundScheduler(tp.EqualShare(0.75, num_tasks=1, rounds=2), pattern={"dense_2": "4x1"})
        prune_rounds(sparse, rounds, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rounds.on_train_end()
        assert kept(sparse) == [18, round(30 * 0.25) * 4, 5]

    def test_a_schedule_of_a_pack_that_ends_before_the_pattern_is_refused(self):
        rounds = tp.PruneRoundScheduler(tp.EqualShare(0.16, num_tasks=2), pattern="2:4")
        with pytest.raises(tp.ArgumentError, match=r"schedule.*at least 0\.5, .*dense_1/kernel.*='0\.4'"):
            rounds.check_fit(tp.pack(make_mlp()), FitRequest([rounds], 0, 1))

    def test_the_pattern_of_a_pack_holds_for_the_weights_of_each_task(self):
        packed = compile_model(tp.pack(make_mlp()))
        for name in ("one", "two"):
            packed.begin_task(name)
            rounds = tp.PruneRoundScheduler(tp.EqualShare(0.25, num_tasks=2), pattern="2:4")
            rounds.check_fit(packed, FitRequest([rounds], 0, 1))
            prune_rounds(packed, rounds, 1)
            packed.commit_task()
        for owner in packed.owner_maps().values():
            assert np.count_nonzero(owner == 1) == owner.size // 2
            assert np.count_nonzero(owner == 2) == round((owner.size - owner.size // 2) / 2)
            for task in (1, 2):
                padded = np.pad(owner == task, ((0, -len(owner) % 4), (0, 0)))
                assert padded.reshape(-1, 4, owner.shape[1]).sum(axis=1).max() <= 2


# A layer, its kernel, and the axes of the kernel that are summed into one output.
AXES = [
    (L.Dense(5), "kernel", (4, 6), (0,)),
    (L.Conv1D(5, 2), "kernel", (4, 6, 6), (1,)),
    (L.Conv2D(5, 2), "kernel", (4, 6, 6, 6), (2,)),
    (L.Conv3D(5, 2), "kernel", (4, 6, 6, 6, 6), (3,)),
    (L.Conv1DTranspose(5, 2), "kernel", (4, 6, 6), (2,)),
    (L.Conv2DTranspose(5, 2), "kernel", (4, 6, 6, 6), (3,)),
    (L.SeparableConv2D(5, 2), "pointwise_kernel", (4, 6, 6, 6), (2,)),
    (L.SeparableConv2D(5, 2), "depthwise_kernel", (4, 6, 6, 6), None),
    (L.DepthwiseConv2D(2), "kernel", (4, 6, 6, 6), None),
    (L.Embedding(9, 4), "embeddings", (4, 6), None),
    (L.EinsumDense("abc,cde->abde", (6, 3, 5)), "kernel", (4, 6, 6), (0,)),
    (L.EinsumDense("abcd,cde->abe", (6, 5)), "kernel", (4, 6, 6, 6), (0, 1)),
    (L.EinsumDense("...x,xy->...y", 5), "kernel", (4, 6), (0,)),
    (L.LSTMCell(5), "recurrent_kernel", (4, 6), (0,)),
]


@pytest.mark.parametrize(("layer", "name", "shape", "axes"), AXES, ids=lambda each: getattr(each, "name", None))
def test_input_axes_are_those_that_an_output_sums(layer, name, shape, axes):
    layer.build(shape)
    kernel = getattr(layer, name)
    assert input_axes(layer, name, len(kernel.shape)) == axes
    masked = tp.layers.TWINS[type(layer)]
    assert issubclass(masked, type(layer))


@pytest.mark.parametrize("scope", PRUNE_SCOPES)
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(("kept_of", "size"), [(1, 2), (2, 4), (3, 4), (1, 8), (5, 6)])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.1])
def test_n_m_counts_are_exact_and_no_group_has_more(scope, axes, kept_of, size, share):
    """Rounds down to a fraction of N/M or less; kernels in which only a share of the weights are candidates."""
    rng = np.random.default_rng(0)
    shapes = [(13, 6, 4), (8, 9, 2)]
    began = [rng.random(shape) < share for shape in shapes]
    scores = [np.abs(rng.normal(size=shape)).round(1) for shape in shapes]  # with ties
    pattern, eligible, counts = parse_pattern(f"{kept_of}:{size}"), began, [int(mask.sum()) for mask in began]
    for fraction in (0.95, kept_of / size, 0.8 * kept_of / size):
        masks = keep_pattern_masks([pattern] * 2, [axes] * 2, scores, eligible, began, fraction, scope)
        for mask, before in zip(masks, eligible, strict=True):
            assert not (mask & ~before).any()
        totals = [int(mask.sum()) for mask in masks]
        if scope == "layer":
            assert totals == [round(count * fraction) for count in counts]
        assert abs(sum(totals) - sum(counts) * fraction) <= 1
        eligible = masks
        if fraction <= kept_of / size:
            for mask in masks:
                moved = np.moveaxis(mask, axes, range(-len(axes), 0))
                rows = moved.reshape(-1, np.prod([mask.shape[axis] for axis in axes]))
                padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size)))
                assert padded.reshape(-1, size).sum(axis=1).max() <= kept_of


@pytest.mark.parametrize("scope", PRUNE_SCOPES)
@pytest.mark.parametrize("pattern", ["3x2", "3x2:max", "1x1", "50x50"])
def test_blocks_are_pruned_as_a_whole(scope, pattern):
    rng = np.random.default_rng(0)
    shapes = [(7, 5), (3, 3, 8, 4)]
    began = [np.ones(shape, bool) for shape in shapes]
    scores = [np.abs(rng.normal(size=shape)) for shape in shapes]
    blocks = parse_pattern(pattern)
    masks = keep_pattern_masks([blocks] * 2, [()] * 2, scores, began, began, 0.4, scope)
    counts = [int(np.count_nonzero(blocks.units(mask))) for mask in began]
    kept_blocks = [int(np.count_nonzero(blocks.units(mask))) for mask in masks]
    if scope == "layer":
        assert kept_blocks == [round(0.4 * count) for count in counts]
    assert abs(sum(kept_blocks) - 0.4 * sum(counts)) <= 1
    for mask in masks:
        np.testing.assert_array_equal(blocks.weights(blocks.units(mask), mask.shape), mask)
    if pattern == "1x1":
        expected = keep_masks(scores, began, [mask.size for mask in began], 0.4, scope)
        for mask, other in zip(masks, expected, strict=True):
            np.testing.assert_array_equal(mask, other)


@pytest.mark.parametrize(
    "pattern", ["", "4:2", "2:2", "0:4", "2:0", "-1:4", "2:4:8", "2/4", "4x", "x4", "0x4", "4x4:avg", (2, 4), 2, "２:4"]
)
def test_patterns_that_do_not_exist(pattern):
    with pytest.raises(tp.ArgumentError, match="Invalid `pattern`"):
        parse_pattern(pattern)


def embedded():
    model = keras.Sequential([keras.Input((3,), dtype="int32"), L.Embedding(9, 4, name="table"), L.Dense(4)])
    return compile_model(tp.sparsify(model))


HALF = At({1: 0.5})


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (sparse_mlp, lambda: {"schedule": 0.5}, "schedule"),
        (sparse_mlp, dict, "schedule"),
        (sparse_mlp, lambda: {"pattern": "4x4"}, "schedule"),
        (sparse_mlp, lambda: {"pattern": {"dense_1": "2:4"}}, "schedule"),
        (sparse_mlp, lambda: {"schedule": {"dense_1": 0.5}}, "schedule"),
        (sparse_mlp, lambda: {"schedule": {"dense_3": HALF}}, "schedule.*'dense_1', 'dense_2'"),
        (sparse_mlp, lambda: {"schedule": tp.EqualShare(0.5, 1)}, "schedule.*PruneRoundScheduler"),
        (sparse_mlp, lambda: {"schedule": Until({1: 0.4}), "pattern": "2:4"}, "schedule.*at least 0.5.*dense_1"),
        (sparse_mlp, lambda: {"schedule": HALF, "pattern": "4:2"}, "pattern"),
        (sparse_mlp, lambda: {"schedule": HALF, "pattern": {"dense_4": "2:4"}}, "pattern"),
        (sparse_mlp, lambda: {"schedule": HALF, "scope": "all"}, "scope"),
        (embedded, lambda: {"schedule": HALF, "pattern": "2:4"}, "pattern.*table/embeddings"),
    ],
    ids=itertools.count(),
)
def test_schedules_and_patterns_that_are_refused_before_the_first_step(make, arguments, message):
    sparse = make()
    x, y = np.zeros((2, *sparse.input_shape[1:])), np.zeros(2, int)
    before = sparse.get_weights()
    with pytest.raises(tp.ArgumentError, match=message):
        sparse.fit(x, y, verbose=0, callbacks=[tp.PruneStepScheduler(**arguments())])
    for weight, value in zip(sparse.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("answer", [None, 0.5, (True, 2.0), (True, float("nan")), (True, "x")])
def test_schedules_with_invalid_answers(answer):
    sparse = sparse_mlp()
    with pytest.raises(tp.ArgumentError, match="schedule"):
        step(sparse, begun(sparse, lambda number: answer))


@pytest.mark.parametrize("layers", ["dense_1", ["dense_3"], [], 3, lambda layer: False])
def test_layers_that_cannot_be_chosen(layers):
    with pytest.raises(tp.ArgumentError, match="layers"):
        tp.sparsify(make_mlp(), layers)


def test_models_that_are_refused():
    with pytest.raises(tp.ArgumentError, match="model"):
        tp.sparsify(tp.sparsify(make_mlp()))
    with pytest.raises(tp.ArgumentError, match="model"):
        tp.sparsify(L.Dense(3))
    with pytest.raises(tp.ArgumentError, match=r"tp\.sparsify"):
        tp.strip_pruning(make_mlp())


@pytest.mark.parametrize(
    ("schedule", "stop", "message"),
    [
        (Until({1: 0.2, 9: 0.5}), {}, "start_from_epoch.*at least 2"),  # 4 steps an epoch: step 9 is in epoch 2
        (Until({1: 0.2, 9: 0.5}), {"start_from_epoch": 1}, "start_from_epoch.*at least 2"),
        (Until({1: 0.2, 9: 0.5}), {"start_from_epoch": 2}, None),
        (Until({1: 0.2, 4: 0.5}), {}, None),
        (At({1: 0.2}), {}, "restore_best_weights"),
    ],
)
def test_early_stopping_must_not_restore_weights_that_are_not_pruned(schedule, stop, message):
    sparse = sparse_mlp()
    stopping = keras.callbacks.EarlyStopping("loss", restore_best_weights=True, **stop)
    scheduler = tp.PruneStepScheduler(schedule)
    scheduler.check_fit(sparse, FitRequest([stopping, scheduler], 0, 3))
    scheduler.set_model(sparse)
    scheduler.set_params({"steps": 4, "epochs": 3})
    if message is None:
        scheduler.on_train_begin()
    else:
        with pytest.raises(tp.ArgumentError, match=message):
            scheduler.on_train_begin()


def test_one_callback_prunes():
    sparse = sparse_mlp()
    for other in (tp.PruneStepScheduler(HALF), tp.PruneRoundScheduler(At({0: 0.5}))):
        for callbacks in itertools.permutations([tp.PruneStepScheduler(HALF), other]):
            with pytest.raises(tp.ArgumentError, match="callbacks"):
                sparse.fit(*blobs(0), verbose=0, callbacks=list(callbacks))
