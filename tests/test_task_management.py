"""Tasks of a pack are listed, renamed, abandoned and forgotten; the outputs of other tasks stay bit-identical."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tf_packnet as tp
from tests.conftest import blobs, compile_model, make_mlp
from tests.packs import X, around
from tests.stateful import make_stateful
from tests.stateful import outputs as predictions
from tf_packnet import lifecycle
from tf_packnet.lifecycle import managing
from tf_packnet.structure.state import seeds

slow = pytest.mark.slow
KINDS = {
    "first_task": {},
    "per_task": {"bias_policy": "per_task", "freed_weights": "keep"},
    "shared": {"head": "shared", "freed_weights": "reinit"},
    "visible": {"pretrained": "task 0", "prune_pretrained": False},
}


def network() -> keras.Model:
    return around(
        keras.layers.BatchNormalization(name="norm"), keras.layers.Dropout(0.5), keras.layers.Dense(6, "relu")
    )


def assign(packed: tp.PackedModel, seed: int, keep: float = 0.5) -> None:
    """Change all that training changes, and prune."""
    rng = np.random.default_rng(seed)
    for layer in lifecycle.task_layers(packed):
        for weight in layer.routed_weights:
            weight.variable.assign(abs(rng.normal(size=weight.variable.shape)))
    for variable in lifecycle.bind_state(packed).values():
        variable.assign(rng.integers(1, 9, variable.shape))
    for state in seeds(packed):
        state.assign(rng.integers(1, 99, state.shape))
    for weight in lifecycle.masked_weights(packed).values():
        weight.prune(rng.random(weight.owner_map().shape) < keep)


def learn(packed: tp.PackedModel, name: str, seed: int, num_classes: int | None = None) -> np.ndarray:
    """Learn a task without training; return its outputs."""
    packed.begin_task(name, num_classes=num_classes)
    assign(packed, seed)
    packed.commit_task()
    return np.array(packed(X, training=False))


def outputs(packed: tp.PackedModel) -> dict[str, np.ndarray]:
    selected, found = packed.selected_task, {}
    for task in packed.tasks:
        if not task.is_open:
            packed.select_task(task.name)
            found[task.name] = np.array(packed(X, training=False))
    if found:
        packed.select_task(selected)
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def everything(packed: tp.PackedModel) -> dict[str, np.ndarray]:
    """Return the state without the records, whose parts the tests compare on their own."""
    state = {name: np.array(value) for name, value in lifecycle.state(packed).items() if "/records" not in name}
    return state | {f"seed {number}": np.array(each) for number, each in enumerate(seeds(packed))}


def reloaded(packed: tp.PackedModel, folder, kind: str) -> tp.PackedModel:
    path = folder / f"pack.{kind}"
    if kind == "keras":
        packed.save(path)
        return keras.models.load_model(path)
    tp.save_pack(packed, path, free_values=True)
    return tp.load_pack(path)


@pytest.mark.parametrize(
    "kind", ["per_task", *(pytest.param(kind, marks=slow) for kind in KINDS if kind != "per_task")]
)
def test_remaining_tasks_compute_as_before(kind, tmp_path):
    packed = tp.pack(network(), **KINDS[kind])
    sizes = [None] * 5 if kind == "shared" else [2, 3, 4, 2, 5]
    first = {name: learn(packed, name, seed, sizes[seed]) for seed, name in enumerate("abcde")}
    assert_same(outputs(packed), first)
    owned = {task.name: task.weights for task in packed.tasks}
    assert all(owned.values())
    assert [task.frees for task in packed.tasks] == [0, 0, 0, 0, owned["e"]]
    assert packed.tasks[1].used_by == ("c", "d", "e")
    exported = {name: tp.dense_model(packed, name).get_weights() for name in "de"}

    packed.select_task("b")
    forgotten = packed.forget_task("b")
    assert (forgotten.freed, forgotten.kept, forgotten.owner) == (0, owned["b"], "c")
    assert packed.selected_task == packed.committed_tasks == 4
    del first["b"]
    assert_same(outputs(packed), first)
    assert [task.weights for task in packed.tasks] == [owned["a"], owned["b"] + owned["c"], owned["d"], owned["e"]]
    for name, weights in exported.items():
        for now, before in zip(tp.dense_model(packed, name).get_weights(), weights, strict=True):
            np.testing.assert_array_equal(now, before)

    free = packed.free_fraction()["overall"]
    forgotten = packed.forget_task("e")
    assert (forgotten.freed, forgotten.kept, forgotten.owner) == (owned["e"], 0, None)
    assert packed.free_fraction()["overall"] > free
    packed.rename_task("c", "C")
    first = {"a": first["a"], "C": first["c"], "d": first["d"]}
    for file in ("keras", "packnet"):
        packed = reloaded(packed, tmp_path, file)
        assert packed.task_names == ["a", "C", "d"]
        assert_same(outputs(packed), first)
    first["b"] = learn(packed, "b", 7, sizes[1])  # relearn
    assert packed.task_number("b") == 4
    packed.forget_task("a")
    del first["a"]
    assert_same(outputs(packed), first)
    assert packed.tasks[-1].frees == packed.tasks[-1].weights > 0
    lifecycle.check_tasks(packed)


@pytest.mark.parametrize(
    ("kind", "committed", "loaded"),
    [
        ("per_task", 2, False),
        ("visible", 0, True),
        pytest.param("per_task", 0, True, marks=slow),
        pytest.param("per_task", 0, False, marks=slow),
        pytest.param("per_task", 2, True, marks=slow),
        pytest.param("visible", 2, True, marks=slow),
        pytest.param("first_task", 2, True, marks=slow),
        pytest.param("shared", 1, False, marks=slow),
    ],
)
def test_an_abandoned_task_leaves_no_trace(kind, committed, loaded, tmp_path):
    model = network() if kind in ("visible", "shared") else make_stateful()
    packed = compile_model(tp.pack(model, **KINDS[kind]))
    classes = None if kind == "shared" else 2 if loaded else 3
    for number in range(committed):
        learn(packed, f"task {number}", number, classes)
    if committed:
        packed.select_task(1)
    names, before, weights = packed.task_names, everything(packed), packed.get_weights()
    expected = outputs(packed)
    packed.begin_task("dropped", num_classes=classes if loaded or kind == "shared" else 5)
    assign(packed, 9)
    packed.reopen_task()
    packed.train_on_batch(X, np.zeros(5, "int32"))
    for weight in lifecycle.masked_weights(packed).values():
        weight.prune(np.zeros(weight.owner_map().shape, bool))
    if committed:
        packed.select_task(committed)
    if loaded:
        packed = reloaded(packed, tmp_path, "keras")
    packed.abandon_task()
    after = everything(packed)
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    if not loaded:
        for now, then in zip(packed.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(now, then)
    assert packed.task_names == names
    assert_same(outputs(packed), expected)
    learn(compile_model(packed), "next", 4, classes)


@slow
def test_a_task_begins_after_an_abandoned_one_as_if_there_had_been_none():
    x, y = blobs(0)
    found, prune = [], tp.PruneRoundScheduler(tp.EqualShare(0.5, 3))
    for abandons in (False, True):
        keras.utils.set_random_seed(0)
        packed = compile_model(tp.pack(make_mlp(), freed_weights="keep"))
        for name in ("a", "b"):
            if abandons:
                packed.begin_task("dropped")
                packed.fit(x, y, epochs=1, shuffle=False, verbose=0, callbacks=[prune])
                packed.abandon_task()
            packed.begin_task(name)
            packed.fit(x, y, epochs=1, shuffle=False, verbose=0, callbacks=[prune, tp.TaskMaskSnapshot()])
        found.append(predictions(packed, x))
    assert_same(*found)


def test_witnesses_follow():
    packed = tp.pack(network())
    for seed, name in enumerate("abc"):
        learn(packed, name, seed)
    before = packed.owner_maps()["first/kernel"]
    packed.forget_task("a")
    weight = lifecycle.masked_weights(packed)["first/kernel"]
    learned_by_a = (before == 1).astype("float32")
    assert learned_by_a.any()
    weight.frozen.assign(np.array(weight.frozen) + learned_by_a)
    with pytest.raises(tp.FreezeError, match=r"task 1 \('b'\) in 'first/kernel'"):
        lifecycle.check_tasks(packed)


def test_a_pack_that_fails_its_checks_is_unchanged(monkeypatch):
    packed = tp.pack(network(), bias_policy="per_task")
    first = {name: learn(packed, name, seed, 2 + seed) for seed, name in enumerate("abc")}
    before = everything(packed)
    results = iter([None, tp.FreezeError("changed")])

    def check(model):
        result = next(results)
        if result is not None:
            raise result

    monkeypatch.setattr(managing, "check_tasks", check)
    with pytest.raises(tp.FreezeError, match="changed"):
        packed.forget_task("c")
    after = everything(packed)
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert_same(outputs(packed), first)


def test_what_cannot_be_done_is_refused(tmp_path):
    packed = tp.pack(make_mlp())
    for call in (packed.abandon_task, lambda: packed.rename_task(1, "x"), lambda: packed.forget_task(1)):
        with pytest.raises((RuntimeError, tp.ArgumentError), match="not begun with begin_task|Invalid `task`"):
            call()
    learn(packed, "a", 0)
    with pytest.raises(tp.ArgumentError, match="a pack with other tasks"):
        packed.forget_task("a")
    with pytest.raises(RuntimeError, match="no task is open"):
        packed.abandon_task()
    for name in ("", "b\n", 3, "a" * 201):
        with pytest.raises(tp.ArgumentError, match="Invalid `name`"):
            packed.rename_task("a", name)
    learn(packed, "b", 1)
    for task in ("c", 0, 3, True, None, 1.5):
        with pytest.raises(tp.ArgumentError, match="Invalid `task`"):
            packed.forget_task(task)
        with pytest.raises(tp.ArgumentError, match="Invalid `task`"):
            packed.rename_task(task, "c")
    with pytest.raises(tp.ArgumentError, match="a name that no task of this pack has yet"):
        packed.rename_task("a", "b")
    packed.rename_task("a", "a")
    packed.begin_task("c")
    packed.rename_task("c", "d")
    with pytest.raises(RuntimeError, match="commit it or abandon it"):
        packed.forget_task("a")
    with pytest.raises(tp.ArgumentError, match="abandon_task"):
        packed.forget_task("d")
    assert packed.task_names == ["a", "b", "d"]


def test_callbacks_cannot_manage_tasks():
    x, y = blobs(0)
    packed = compile_model(tp.pack(make_mlp()))
    learn(packed, "a", 0)
    packed.begin_task("b")
    found = []

    class Manages(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for name, arguments in {"abandon_task": (), "forget_task": ("a",), "rename_task": ("a", "c")}.items():
                with pytest.raises(RuntimeError, match=f"{name} cannot be called during a fit"):
                    getattr(packed, name)(*arguments)
                found.append(name)

    packed.fit(x, y, epochs=1, verbose=0, callbacks=[Manages()])
    assert len(found) == 3
    packed.rename_task("a", "c")


def test_a_backup_does_not_bring_back_a_forgotten_task(tmp_path):
    x, y = blobs(0)
    packed = compile_model(tp.pack(make_mlp()))
    for seed, name in enumerate("ab"):
        learn(packed, name, seed)
    packed.begin_task("c")
    backup = tp.EpochBackup(tmp_path / "fit", delete_at_end=False)
    packed.fit(x, y, epochs=1, verbose=0, callbacks=[backup])
    packed.abandon_task()
    packed.forget_task("a")
    learn(packed, "d", 2)
    packed.begin_task("c")
    with pytest.raises(tp.ArgumentError, match=r"the tasks \['b', 'd', 'c'\]"):
        packed.fit(x, y, epochs=1, verbose=0, callbacks=[backup])


class Life(RuleBasedStateMachine):
    """Begins, trains, commits, abandons, renames, forgets, saves and loads in any order."""

    folder = None

    @initialize(kind=st.sampled_from(sorted(KINDS)))
    def start(self, kind):
        keras.utils.set_random_seed(0)
        self.kind, self.first, self.names = kind, {}, iter(f"task {number}" for number in range(1000))
        self.packed = compile_model(tp.pack(network(), **KINDS[kind]))
        self.before = None

    def open(self):
        return bool(self.packed.task_names) and lifecycle.has_open_task(self.packed)

    @precondition(lambda self: not self.open() and self.packed.free_fraction()["overall"] > 0)
    @rule(size=st.integers(2, 4))
    def begin(self, size):
        self.before = everything(self.packed)
        self.packed.begin_task(next(self.names), num_classes=None if self.kind == "shared" else size)

    @precondition(lambda self: self.open())
    @rule(seed=st.integers(0, 99))
    def train(self, seed):
        x, y = blobs(seed, examples=8)
        self.packed.train_on_batch(x, y)

    @precondition(lambda self: self.open())
    @rule(seed=st.integers(0, 99))
    def prune(self, seed):
        rng = np.random.default_rng(seed)
        for weight in lifecycle.masked_weights(self.packed).values():
            weight.prune(rng.random(weight.owner_map().shape) < 0.4)

    @precondition(lambda self: self.open())
    @rule()
    def commit(self):
        self.packed.commit_task()
        self.first[self.packed.task_names[-1]] = np.array(self.packed(X, training=False))

    @precondition(lambda self: self.open())
    @rule()
    def abandon(self):
        self.packed.abandon_task()
        after = everything(self.packed)
        for name, value in self.before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)

    @precondition(lambda self: self.first and not self.open())
    @rule(place=st.integers(0, 99))
    def rename(self, place):
        old = self.packed.task_names[place % len(self.packed.task_names)]
        new = next(self.names)
        self.packed.rename_task(old, new)
        self.first[new] = self.first.pop(old)

    @precondition(lambda self: len(self.first) > 1 and not self.open())
    @rule(place=st.integers(0, 99))
    def forget(self, place):
        name = self.packed.task_names[place % len(self.packed.task_names)]
        self.packed.forget_task(name)
        del self.first[name]

    @precondition(lambda self: self.first)
    @rule(kind=st.sampled_from(["keras", "packnet"]))
    def save(self, kind):
        if not self.open():
            self.packed = compile_model(reloaded(self.packed, self.folder, kind))
        elif kind == "keras" and self.packed.selected_task > self.packed.committed_tasks:
            self.packed = compile_model(reloaded(self.packed, self.folder, kind))
            self.before = {name: each for name, each in self.before.items() if name in everything(self.packed)}

    @invariant()
    def every_task_computes_as_at_first(self):
        assert_same(outputs(self.packed), self.first)


@pytest.mark.slow
def test_any_life(tmp_path):
    class InFolder(Life):
        folder = tmp_path

    InFolder.TestCase.settings = settings(
        max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    InFolder.TestCase("runTest").runTest()
