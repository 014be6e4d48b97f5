"""The metrics of continual learning, compared with the definitions in the papers and with Avalanche."""

import json
import shutil

import numpy as np
import pytest

from tf_packnet.approaches import PackNet
from tf_packnet.reporting import metrics
from tf_packnet.runs import learning
from tf_packnet.runs.config import Config
from tf_packnet.runs.paths import StorePlace
from tf_packnet.system import files

RNG = np.random.default_rng(0)
MATRICES = [RNG.random((tasks + 1, tasks)) for tasks in (2, 3, 5, 20) for _ in range(5)]


def avalanche(matrix):
    """Avalanche 0.6: each metric sees one evaluation after another, as its plugins do, and keeps what it needs.

    `Forgetting` keeps the first value after training on an experience and the last one; the stream metric is the mean
    over experiences that were trained before the present one. `BWT` is its negative. `ForwardTransfer` keeps the value
    at initialization and the one after the experience before.
    """
    tasks = len(matrix) - 1
    at_start, first, last, previous = {}, {}, {}, {}
    for trained in range(tasks + 1):  # 0: the evaluation before any training
        last = {}
        for evaluated in range(1, tasks + 1):
            value = matrix[trained][evaluated - 1]
            if trained == 0:
                at_start[evaluated] = value
                continue
            if evaluated == trained:
                first[evaluated] = value
            else:
                last[evaluated] = value
            if trained == evaluated - 1:
                previous[evaluated] = value
    forgotten = [first[task] - last[task] for task in first if task in last]
    transferred = [previous[task] - at_start[task] for task in previous]
    return {
        "average_accuracy": sum(matrix[-1]) / tasks,
        "backward_transfer": -sum(forgotten) / len(forgotten),
        "forward_transfer": sum(transferred) / len(transferred),
    }


def papers(matrix):
    """The formulas as printed, with loops and 1-based indices."""
    tasks = len(matrix) - 1

    def a(i, j):
        return matrix[i][j - 1]

    forgotten = [max(a(i, j) for i in range(j, tasks)) - a(tasks, j) for j in range(1, tasks)]
    return {
        "average_accuracy": sum(a(tasks, i) for i in range(1, tasks + 1)) / tasks,
        "backward_transfer": sum(a(tasks, i) - a(i, i) for i in range(1, tasks)) / (tasks - 1),
        "forward_transfer": sum(a(i - 1, i) - a(0, i) for i in range(2, tasks + 1)) / (tasks - 1),
        "forgetting": sum(forgotten) / (tasks - 1),
        "learning_accuracy": sum(a(i, i) for i in range(1, tasks + 1)) / tasks,
    }


@pytest.mark.parametrize("oracle", [avalanche, papers])
def test_the_definitions(oracle):
    for matrix in MATRICES:
        for name, value in oracle(matrix.tolist()).items():
            assert metrics.MEASURES[name](matrix) == pytest.approx(value, rel=1e-12, abs=1e-15), name


def test_an_example():
    matrix = np.array([[0.5, 0.5, 0.5], [0.75, 0.625, 0.25], [1.0, 0.75, 0.75], [0.5, 0.5, 1.0]])
    assert {name: measure(matrix) for name, measure in metrics.MEASURES.items()} == {
        "average_accuracy": 2 / 3,
        "learning_accuracy": 2.5 / 3,
        "forgetting": 0.375,  # 1.0 -> 0.5 and 0.75 -> 0.5
        "backward_transfer": -0.25,  # 0.75 -> 0.5 and 0.75 -> 0.5
        "forward_transfer": 0.1875,  # 0.625 - 0.5 and 0.75 - 0.5
    }


def test_one_task_has_no_transfer():
    matrix = np.array([[0.5], [1.0]])
    values = {name: measure(matrix) for name, measure in metrics.MEASURES.items()}
    missing = dict.fromkeys(("forgetting", "backward_transfer", "forward_transfer"))
    assert values == {"average_accuracy": 1.0, "learning_accuracy": 1.0, **missing}


@pytest.mark.parametrize(
    ("unknown", "missing"),
    [
        ((0, 0), set()),  # no measure needs the first task before it was learned
        ((0, 1), {"forward_transfer"}),
        ((1, 1), {"forward_transfer"}),
        ((1, 2), set()),
        ((2, 0), {"forgetting"}),
        ((2, 1), {"forgetting", "backward_transfer", "learning_accuracy"}),
        ((3, 2), {"average_accuracy", "learning_accuracy"}),
        ((3, 0), {"average_accuracy", "forgetting", "backward_transfer"}),
    ],
)
def test_a_measure_that_needs_a_missing_accuracy_is_none(unknown, missing):
    matrix = RNG.random((4, 3))
    matrix[unknown] = np.nan
    assert {name for name, measure in metrics.MEASURES.items() if measure(matrix) is None} == missing


ROWS = [[0.5], [0.5, 1.0]]
FREE = {"free_fraction": {"overall": 0.25}}


def test_the_matrix_of_a_run():
    whole = metrics.matrix_of(ROWS, [[0.75], []], [0.25, 0.125])
    assert metrics.to_json(whole) == [[0.25, 0.125], [0.5, 0.75], [0.5, 1.0]]
    assert metrics.to_json(metrics.matrix_of([], [], [0.25, 0.125])) == [[0.25, 0.125]]
    assert metrics.to_json(metrics.matrix_of([[0.5]], [[0.75]], None)) == [[None, None], [0.5, 0.75]]
    assert metrics.to_json(metrics.matrix_of(ROWS)) == [[None, None], [0.5, None], [0.5, 1.0]]
    assert metrics.to_json(metrics.matrix_of(ROWS, [None, []], [0.25, 0.125])) == [[0.25, 0.125], [0.5, None], [0.5, 1]]
    assert json.loads(json.dumps(metrics.to_json(whole))) == metrics.to_json(whole)


def test_results_of_earlier_versions_have_all_measures_but_forward_transfer():
    assert metrics.measures({"accuracy": ROWS, **FREE}) == {
        "average_accuracy": 0.75,
        "learning_accuracy": 0.75,
        "forgetting": 0.0,
        "backward_transfer": 0.0,
        "forward_transfer": None,
        "capacity_used": 0.75,
    }


def test_tasks_that_are_learned_together_have_an_average_only():
    assert metrics.matrix_of([[0.5, 1.0]]) is None
    values = metrics.measures({"accuracy": [[0.5, 1.0]], "accuracy_matrix": None, **FREE})
    known = {name: value for name, value in values.items() if value is not None}
    assert known == {"average_accuracy": 0.75, "capacity_used": 0.75}
    assert list(values) == [*metrics.MEASURES, "capacity_used"]


def test_a_run_that_has_begun_has_the_measures_of_the_tasks_so_far():
    matrix = [[0.25, 0.125, 0.5], [0.5, 0.75, 0.5], [0.25, 1.0, 0.5]]
    values = metrics.measures({"accuracy": [[0.5], [0.25, 1.0]], "accuracy_matrix": matrix, **FREE})
    assert (values["average_accuracy"], values["forward_transfer"], values["forgetting"]) == (0.625, 0.625, 0.25)
    nothing = metrics.measures({"accuracy": [], "accuracy_matrix": matrix[:1], **FREE})
    assert {value for name, value in nothing.items() if name != "capacity_used"} == {None}


FIELDS = {"num_tasks": 3, "train_epochs": 1, "retrain_epochs": 1, "prune_rounds": 1, "final_prune": 0.5, "jit": "off"}


def learn(store, **fields):
    return learning.learn_only(Config(**{**FIELDS, **fields}), StorePlace(store), lambda task, stage: [])


def stages(store):
    """Return the entry of each stage by its key."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(store.glob("*/stage.json"))}


@pytest.fixture(scope="module")
def packnet(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return learn(store), store


class TestRuns:
    """Runs on the digits: three tasks, one epoch per stage."""

    def test_every_task_is_evaluated_before_and_after_each(self, packnet):
        results, _ = packnet
        matrix = np.array(results["accuracy_matrix"])
        assert matrix.shape == (4, 3)
        assert not np.isnan(matrix).any()
        assert [row[: index + 1] for index, row in enumerate(results["accuracy_matrix"][1:])] == results["accuracy"]
        for name, value in papers(matrix.tolist()).items():
            assert results[name] == pytest.approx(value), name
        assert (results["forgetting"], results["backward_transfer"]) == (0.0, 0.0)
        assert results["capacity_used"] == 1.0 - results["free_fraction"]["overall"]
        assert np.unique(matrix[np.triu_indices(3)]).size > 1

    def test_it_changes_no_bit_of_the_training(self, packnet, tmp_path, monkeypatch):
        results, store = packnet
        monkeypatch.setattr(PackNet, "unseen_accuracy", lambda self, tasks: [0.0] * len(tasks))
        without = learn(tmp_path)
        assert without["accuracy"] == results["accuracy"]
        ours, theirs = stages(store), stages(tmp_path)
        assert list(ours) == list(theirs)
        assert len(ours) == 6
        for key, entry in ours.items():
            assert entry["sha256"] == theirs[key]["sha256"]  # of the state of the network
            assert entry["record"]["history"] == theirs[key]["record"]["history"]
            assert entry["record"]["committed"] == theirs[key]["record"]["committed"]

    def test_stages_of_earlier_versions_are_reused(self, packnet, tmp_path):
        results, store = packnet
        shutil.copytree(store, tmp_path / "store")
        for path in (tmp_path / "store").glob("*/stage*.json"):
            entry = files.read_json(path)
            entry["record"].pop("untrained")
            (entry["record"]["learned"] or {}).pop("unseen_accuracy", None)
            files.write_json(path, entry)
        earlier = learn(tmp_path / "store")
        assert all(stage["reused"] for stage in earlier["seconds"])
        assert earlier["accuracy"] == results["accuracy"]
        assert earlier["accuracy_matrix"] == metrics.to_json(metrics.matrix_of(results["accuracy"]))
        assert earlier["forward_transfer"] is None
        for name in ("average_accuracy", "learning_accuracy", "forgetting", "backward_transfer", "capacity_used"):
            assert earlier[name] == results[name]

    @pytest.mark.parametrize("fields", [{"approach": "memory"}, {"approach": "multinet"}, {"head": "shared"}])
    def test_other_approaches_and_heads(self, fields, tmp_path):
        results = learn(tmp_path, **fields)
        missing = {name for name in metrics.MEASURES if results[name] is None}
        if fields == {"approach": "multinet"}:
            assert results["accuracy_matrix"] is None
            assert missing == set(metrics.MEASURES) - {"average_accuracy"}
        else:
            assert np.isfinite(np.array(results["accuracy_matrix"], float)).all()
            assert missing == set()
