"""Counts computed by `plan` agree with training."""

import os

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tf_packnet as tp
from tests.conftest import blobs, compile_model, launch, make_convnet, make_mlp
from tf_packnet.planning import kept_by_task
from tf_packnet.pruning.ranking import PRUNE_SCOPES
from tf_packnet.pruning.schedules import EqualShare

L = keras.layers


def learn(packed, seed, final_prune, tasks, rounds, scope):
    packed.begin_task()
    retraining = [
        tp.PruneRoundScheduler(tp.EqualShare(final_prune, tasks, rounds), scope),
        tp.TaskMaskSnapshot(),
    ]
    packed.fit(*blobs(seed, packed.input_shape[1:]), epochs=rounds, verbose=0, callbacks=retraining)


@pytest.mark.parametrize("scope", PRUNE_SCOPES)
def test_training_keeps_what_was_planned(scope):
    packed = compile_model(tp.pack(make_convnet()), "adam")
    planned = tp.plan(make_convnet(), 3, 0.4, prune_rounds=2, scope=scope)
    for number in (1, 2, 3):
        learn(packed, number, 0.4, 3, 2, scope)
        if number == 1:  # the plan of the remaining tasks is the same
            rest = tp.plan(packed, 3, 0.4, prune_rounds=2, scope=scope)
            assert (rest.first_task, rest.kept) == (2, planned.kept[1:])
    maps = packed.owner_maps()
    owned = {path: [int((owner == task).sum()) for task in (1, 2, 3)] for path, owner in maps.items()}
    assert planned.kept == tuple(map(sum, zip(*owned.values(), strict=True)))
    assert planned.free == sum(int((owner == 0).sum()) for owner in maps.values())
    assert planned.weights == sum(owner.size for owner in maps.values())
    for layer in planned.layers:
        assert layer.shape == maps[layer.path].shape
        if scope == "global":
            assert layer.kept is None
        else:
            assert list(layer.kept) == owned[layer.path]


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    tasks=st.integers(1, 6),
    rounds=st.integers(1, 5),
    p=st.floats(0.01, 0.99),
    scope=st.sampled_from([*PRUNE_SCOPES]),
)
@example(sizes=[1, 1, 1], tasks=1, rounds=1, p=0.5, scope="global")
@settings(max_examples=60, deadline=None)
def test_no_task_gets_more_than_there_is(sizes, tasks, rounds, p, scope):
    kept = kept_by_task([(size, 1) for size in sizes], sizes, EqualShare(p, tasks, rounds), scope, 0)
    assert all(0 <= k <= size for k, size in zip(kept, sizes, strict=True))
    if scope == "global":
        assert sum(kept) == round(sum(sizes) * EqualShare(p, tasks, rounds).kept_fraction(rounds))


@pytest.mark.parametrize("bias_policy", ["first_task", "per_task"])
def test_the_size_on_disk(tmp_path, bias_policy):
    inputs = keras.Input((64,))
    x = L.BatchNormalization()(L.Dense(300, activation="relu")(inputs))
    packed = tp.pack(keras.Model(inputs, L.Dense(50)(L.Dense(400)(x))), bias_policy=bias_policy)
    planned = tp.plan(packed, 2, 0.5)
    compile_model(packed, "sgd")
    for number in (1, 2):
        learn(packed, number, 0.5, 2, 1, "layer")
    packed.save(tmp_path / "pack.keras")
    assert os.path.getsize(tmp_path / "pack.keras") == pytest.approx(planned.pack_bytes, rel=0.05, abs=60_000)
    plain = tp.export.dense_model(packed, 1)
    assert planned.export_bytes == pytest.approx(sum(4 * int(np.prod(w.shape)) for w in plain.weights), rel=0.02)


def test_layers_that_would_be_left_with_too_few():
    planned = tp.plan(make_mlp(), 2, 0.9)
    assert planned.too_few() == [("dense_1/kernel", 1, 4, 12), ("dense_1/kernel", 2, 3, 12)] + [
        ("dense_2/kernel", 1, 6, 10),
        ("dense_2/kernel", 2, 6, 10),
    ]
    text = str(planned)
    for expected in ("tasks 1 to 2, p = 0.9, N = 1, scope layer", "4!", "dense_1/kernel", "6x12", "Few      ! 4 times"):
        assert expected in text
    assert not tp.plan(make_mlp(), 1, 0.1).too_few()


@keras.saving.register_keras_serializable("planning")
class Positions(L.Layer):
    """Its weight is in an attribute without an underscore, unlike those of Keras."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], name="table")

    def call(self, inputs):
        return inputs + self.table


@pytest.mark.parametrize(
    ("layer", "shape", "outputs"),
    [
        (Positions(), (4, 3), {"table": 3}),
        (L.Conv2D(5, 3), (8, 8, 2), {"kernel": 5}),
        (L.Conv2DTranspose(5, 3), (8, 8, 2), {"kernel": 5}),
        (L.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 4), {"kernel": 8}),
        (L.SeparableConv1D(6, 3), (8, 4), {"depthwise_kernel": 4, "pointwise_kernel": 6}),
        (L.EinsumDense("abc,cde->abde", (4, 3, 5)), (4, 2), {"kernel": 15}),
    ],
)
def test_outputs(layer, shape, outputs):
    model = keras.Sequential([keras.Input(shape), layer, L.Flatten(), L.Dense(2)])
    assert {each.path.split("/")[-1]: each.outputs for each in tp.plan(model, 2, 0.5).layers} == outputs


def test_no_room_is_an_error_that_says_what_would_fit():
    with pytest.raises(tp.ArgumentError, match="at most 2 with final_prune=0.99: with more tasks, some"):
        tp.plan(make_mlp(), 40, 0.99)
    assert min(tp.plan(make_mlp(), 2, 0.99).kept) == 1
    packed = compile_model(tp.pack(make_mlp()), "adam")
    learn(packed, 0, 0.5, 1, 1, "layer")
    with pytest.raises(tp.ArgumentError, match="more than the 1 committed tasks of the pack"):
        tp.plan(packed, 1, 0.5)
    with pytest.raises(tp.ArgumentError, match="`final_prune`"):
        tp.plan(packed, 3, 1.5)


def test_many_tasks_have_the_first_and_the_last_columns():
    text = str(tp.plan(make_mlp(), 20, 0.5))
    assert "task 4 ┃ task 17" in text
    assert "task 20" in text


def test_dry_run(tmp_path):
    done = launch("--dry_run", "--num_tasks=3", "--final_prune=0.9", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "tasks 1 to 3, p = 0.9, N = 3, scope layer" in done.stdout
    assert "Memory" in done.stdout
    assert not (tmp_path / "out").exists()
    assert launch("--dry_run", "--seeds=2").returncode == 2


def test_the_launcher_refuses_more_tasks_than_there_is_room_for(tmp_path):
    done = launch("--final_prune=0.9999", "--hidden_units=2", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "--num_tasks=5: expected at most 0 with final_prune=0.9999" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
