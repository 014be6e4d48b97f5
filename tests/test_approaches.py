"""The baselines: their training examples, growing masks, unfrozen weights, and budgets."""

import keras
import numpy as np
import pytest

from tests.conftest import make_mlp
from tf_packnet import lifecycle, pack
from tf_packnet.approaches import Memory, Multinet, PackNet
from tf_packnet.approaches.joint import TaskwiseAccuracy, TaskwiseCrossentropy, select_own_task
from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.policies import PRUNE_RETRAIN, TRAIN
from tf_packnet.pruning.ranking import PRUNE_SCOPES
from tf_packnet.pruning.schedules import EqualShare, GrowingShare
from tf_packnet.tasks import Split, TaskStream, split_into_tasks

TASKS, CLASSES, P = 3, 2, 0.5


def make_stream(examples=(60, 90, 75), seed=0) -> TaskStream:
    """Tasks of different sizes, to test that they are used."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n) % CLASSES + CLASSES * task for task, n in enumerate(examples)])
    centers = rng.normal(size=(TASKS * CLASSES, 6))
    images = (centers[labels] + 0.3 * rng.normal(size=(len(labels), 6))).astype("float32")
    examples = Split(images, labels)
    names = [str(label) for label in range(TASKS * CLASSES)]
    return split_into_tasks("made", examples, examples, names, CLASSES, validation_fraction=0.2, batch_size=8)


def make_approach(kind, stream, steps=None, budget="steps", rounds=2, scope="layer", freed="zero", heads=True):
    keras.utils.set_random_seed(1)
    joint = kind is not PackNet
    model = make_mlp() if not joint or not heads else make_mlp_with_outputs(TASKS * CLASSES)
    packed = pack(model, head="per_task" if heads else "shared", freed_weights=freed)
    sliced = joint and heads
    packed.compile(
        keras.optimizers.Adam(1e-2),
        TaskwiseCrossentropy(CLASSES) if sliced else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[TaskwiseAccuracy(CLASSES)] if sliced else ["accuracy"],
        jit_compile=False,
    )
    joint_arguments = {"num_classes": CLASSES, "own_heads": heads, "budget": budget} if joint else {}
    count = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: steps is not None and steps.append(int(packed.optimizer.iterations))
    )
    return kind(
        packed,
        EqualShare(P, TASKS, rounds),
        train_epochs=4,
        retrain_epochs=4,
        prune_scope=scope,
        observers=lambda task, stage: [count],
        **joint_arguments,
    )


def make_mlp_with_outputs(units):
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(12, activation="relu", name="dense_1")(inputs)
    hidden = keras.layers.Dense(10, activation="relu", name="dense_2")(hidden)
    return keras.Model(inputs, keras.layers.Dense(units, name="head")(hidden))


def learn_all(approach, stream):
    for number in approach.training_task_numbers(len(stream)):
        approach.learn(approach.training_task(stream, number))


@pytest.mark.parametrize("heads", [True, False])
def test_a_union_has_the_examples_of_its_tasks_with_different_labels(heads):
    stream = make_stream()
    joined = make_approach(Memory, stream, heads=heads).training_task(stream, 2)
    for name, split in joined.splits.items():
        parts = [task.splits[name] for task in stream[:2]]
        np.testing.assert_array_equal(split.images, np.concatenate([part.images for part in parts]))
        shift = CLASSES if heads else 0
        np.testing.assert_array_equal(split.labels, np.concatenate([parts[0].labels, parts[1].labels + shift]))
    assert joined.number == 2
    assert joined.name == "tasks 1-2"
    assert joined.class_names == ("0", "1", "2", "3")


def test_loss_and_accuracy_use_the_logits_of_an_examples_own_task():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, TASKS * CLASSES)).astype("float32")
    labels = rng.integers(0, TASKS * CLASSES, 50)
    own = np.stack([row[label // 2 * 2 : label // 2 * 2 + 2] for row, label in zip(logits, labels, strict=True)])
    within, sliced = select_own_task(labels, logits, CLASSES)
    np.testing.assert_array_equal(sliced, own)
    np.testing.assert_array_equal(within, labels % 2)
    expected = np.mean(np.log(np.exp(own).sum(1)) - own[np.arange(50), labels % 2])
    assert float(TaskwiseCrossentropy(CLASSES)(labels, logits)) == pytest.approx(expected, rel=1e-5)
    metric = TaskwiseAccuracy(CLASSES)
    metric.update_state(labels, logits)
    assert float(metric.result()) == pytest.approx(np.mean(own.argmax(1) == labels % 2))


def test_the_head_of_an_absent_task_gets_no_gradient():
    import tensorflow as tf

    logits = tf.Variable(np.random.default_rng(0).normal(size=(8, 6)).astype("float32"))
    with tf.GradientTape() as tape:
        loss = TaskwiseCrossentropy(CLASSES)(np.array([0, 1, 2, 3, 0, 1, 2, 3]), logits)
    gradient = tape.gradient(loss, logits).numpy()
    assert (gradient[:, 4:] == 0).all()
    assert (gradient[:2, 2:4] == 0).all()
    assert (gradient[2:4, 2:4] != 0).all()


@pytest.mark.parametrize("custom", [TaskwiseCrossentropy(3, name="mine"), TaskwiseAccuracy(3, name="mine")])
def test_loss_and_metric_round_trip(custom):
    again = type(custom).from_config(custom.get_config())
    assert (again.num_classes, again.name) == (3, "mine")


def test_the_growing_share_is_what_packnet_would_have_used():
    r = P ** (1 / TASKS)
    for task in range(1, TASKS + 1):
        share = GrowingShare(P, TASKS, rounds=4, task=task)
        assert share.kept_fraction(0) == pytest.approx(1.0)
        assert share.kept_fraction(4) == pytest.approx(1 - r**task)
        assert share.for_epochs(8).get_config() == {**share.get_config(), "epochs": 8}
    with pytest.raises(ArgumentError, match="the number of a task, 1 to 3"):
        GrowingShare(P, TASKS, task=4)


@pytest.mark.parametrize("freed", ["zero", "keep", "reinit"])
@pytest.mark.parametrize("scope", PRUNE_SCOPES)
def test_the_mask_of_memory_grows_exactly_and_nothing_is_frozen(scope, freed):
    stream = make_stream()
    approach = make_approach(Memory, stream, scope=scope, freed=freed)
    r = P ** (1 / TASKS)
    before: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for number in approach.training_task_numbers(len(stream)):
        approach.learn(approach.training_task(stream, number))
        maps = approach.owner_maps()
        total = sum(map.size for map in maps.values())
        used = sum(int((map > 0).sum()) for map in maps.values())
        if scope == "layer":
            for map in maps.values():
                assert int((map > 0).sum()) == round(map.size * (1 - r**number))
        elif scope == "global":
            assert used == round(total * (1 - r**number))
        else:
            assert used == pytest.approx(total * (1 - r**number), abs=len(maps))
        for path, map in before.items():
            np.testing.assert_array_equal(maps[path][map > 0], map[map > 0])  # members stay in the mask
            assert (maps[path][map == 0] != 0).sum() == (maps[path] == number).sum()
        weights = lifecycle.masked_weights(approach.packed)
        for path, old in values.items():
            member = before[path] > 0
            assert (weights[path].values()[member] != old[member]).mean() > 0.5
        before, values = maps, {path: weight.values().copy() for path, weight in weights.items()}
    assert [approach.accuracy(task) > 0.9 for task in stream] == [True] * TASKS


def test_multinet_learns_all_tasks_at_once_and_keeps_its_share():
    stream = make_stream()
    approach = make_approach(Multinet, stream)
    assert list(approach.training_task_numbers(TASKS)) == [TASKS]
    learn_all(approach, stream)
    for map in approach.owner_maps().values():
        assert set(np.unique(map)) == {0, TASKS}
        assert int((map > 0).sum()) == round(map.size * (1 - P))
    assert [approach.accuracy(task) > 0.9 for task in stream] == [True] * TASKS


def test_predictions_of_a_joint_network_use_the_classes_of_the_task():
    stream = make_stream()
    approach = make_approach(Multinet, stream)
    learn_all(approach, stream)
    x = stream[1].splits["test"].x
    logits = approach.logits(x)
    np.testing.assert_array_equal(approach.predict(stream[1], x), logits[:, 2:4])


@pytest.mark.parametrize("kind", [Memory, Multinet])
def test_a_shared_head(kind):
    stream = make_stream()
    approach = make_approach(kind, stream, heads=False)
    learn_all(approach, stream)
    assert approach.predict(stream[2], stream[2].splits["test"].x).shape[1] == CLASSES
    assert "head/kernel" in approach.owner_maps()


def test_all_approaches_take_the_same_number_of_gradient_steps():
    stream = make_stream()
    steps = {kind: [] for kind in (PackNet, Memory, Multinet)}
    for kind, taken in steps.items():
        learn_all(make_approach(kind, stream, steps=taken), stream)
    steps_per_epoch = [len(task.splits["train"]) // 8 for task in stream]
    assert steps[PackNet] == steps[Memory] == [4 * count for count in steps_per_epoch for _ in range(2)]
    assert steps[Multinet] == [4 * sum(steps_per_epoch)] * 2


def test_the_budget_in_epochs():
    stream = make_stream()
    taken = []
    learn_all(make_approach(Memory, stream, steps=taken, budget="epochs"), stream)
    examples = np.cumsum([len(task.splits["train"]) for task in stream])
    assert taken == [4 * (count // 8) for count in examples for _ in range(2)]


@pytest.mark.parametrize(
    ("kind", "freed"),
    [
        (PackNet, "zero"),
        pytest.param(PackNet, "keep", marks=pytest.mark.slow),
        (Memory, "zero"),
        (Multinet, "keep"),
    ],
)
def test_a_restored_approach_continues_with_the_same_bits(kind, freed):
    stream = make_stream()
    uninterrupted = make_approach(kind, stream, freed=freed)
    approach = make_approach(kind, stream, freed=freed)
    for number in uninterrupted.training_task_numbers(TASKS):
        for stage in (TRAIN, PRUNE_RETRAIN):
            task = uninterrupted.training_task(stream, number)
            history = uninterrupted.run_stage(task, stage)
            assert approach.run_stage(task, stage) == history
            state, approach = approach.state(), make_approach(kind, stream, freed=freed)  # like another process
            approach.restore({name: np.array(value) for name, value in state.items()})
    assert approach.state().keys() == uninterrupted.state().keys()
    for name, value in uninterrupted.state().items():
        np.testing.assert_array_equal(approach.state()[name], value, err_msg=name)
    for task in stream:
        x = task.splits["test"].x
        np.testing.assert_array_equal(approach.predict(task, x), uninterrupted.predict(task, x))


def test_reopening_needs_an_open_task():
    packed = pack(make_mlp())
    packed.commit_task()
    with pytest.raises(RuntimeError, match="no task is open"):
        packed.reopen_task()
