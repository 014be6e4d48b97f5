"""TensorBoard logs for comparing runs: HPARAMS, and the curves of an experiment."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tests.test_text import is_safe
from tf_packnet.reporting import event_files, tensorboard_runs
from tf_packnet.reporting.event_files import PREFIX
from tf_packnet.runs.config import Config

ACCURACY = [[1.0], [1.0, 0.5]]
MATRIX = [[0.5, 0.25], [1.0, 0.5], [1.0, 0.5]]


def results(accuracy=ACCURACY, matrix=MATRIX, **fields):
    return {
        "config": {**Config().to_json(), "output_dir": "out/a", **fields},
        "tasks": [{"number": 1, "name": "0-1"}, {"number": 2, "name": "2-3"}],
        "accuracy": accuracy,
        "accuracy_matrix": matrix,
        "free_fraction": {"overall": 0.25},
    }


def events(path):
    accumulator = EventAccumulator(str(path), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def points(board, tag):
    return [(event.step, event.tensor_proto.float_val[0]) for event in board.Tensors(tag)]


def content(board, tag):
    data = board.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(data)


def declared(board):
    experiment = content(board, "experiment").experiment
    infos = {info.name: list(info.domain_discrete) for info in experiment.hparam_infos}
    return infos, [info.name for info in experiment.hparam_infos if info.differs], experiment.metric_infos


def session(board):
    start = content(board, "session_start_info").session_start_info
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    return start.group_name, values


@pytest.mark.parametrize(
    ("varied", "columns"),
    [
        ([{"final_prune": 0.5}, {"final_prune": 0.9}], {"final_prune": [0.5, 0.9]}),
        ([{"seed": 0}, {"seed": 1}], {"seed": [0.0, 1.0]}),
        ([{}], {"seed": [0.0]}),
        ([{"num_tasks": None}, {"num_tasks": 2}], {"num_tasks": ["", "2.0"]}),
        ([{"hidden_units": [8]}, {"hidden_units": [8, 8]}], {"hidden_units": ["8", "8,8"]}),
        ([{"export": True}, {"export": False}], {"export": [True, False]}),
        (
            [{"model": "a\x1b", "seed": 3, "output_dir": "a"}, {"model": "b", "seed": 4, "output_dir": "b"}],
            {"seed": [3.0, 4.0], "model": ["a\\x1b", "b"]},
        ),
    ],
)
def test_an_experiment_declares_only_what_varies(tmp_path, varied, columns):
    names = [f"run={number}" for number in range(len(varied))]
    runs = {name: results(**fields) for name, fields in zip(names, varied, strict=True)}
    tensorboard_runs.log_experiment(tmp_path, runs)
    infos, first, metrics = declared(events(tmp_path))
    assert set(infos) == set(first) == set(columns)
    assert [metric.name.tag for metric in metrics][:3] == [
        "score/average_accuracy",
        "score/learning_accuracy",
        "score/forgetting",
    ]
    for index, name in enumerate(names):
        expected = {field: values[index] for field, values in columns.items()}
        assert session(events(tmp_path / name)) == (name, expected)
        assert all(is_safe(value) for value in expected.values() if isinstance(value, str))


def test_the_curves_of_an_experiment(tmp_path):
    together = results(accuracy=[[0.75, 0.5]], matrix=None, approach="multinet")
    written = tensorboard_runs.log_experiment(tmp_path, {"a": results(), "b": together})
    assert sorted(path.parent.name for path in written) == sorted([tmp_path.name, "a", "b"])
    one, other = events(tmp_path / "a"), events(tmp_path / "b")
    assert points(one, "accuracy_by_task") == [(1, 1.0), (2, 0.5)]
    assert points(one, "average_accuracy") == [(1, 1.0), (2, 0.75)]
    assert points(one, "measures/forgetting") == [(2, 0.0)]
    assert points(one, "measures/forward_transfer") == [(2, 0.25)]
    assert points(one, "score/average_accuracy") == [(2, 0.75)]
    assert points(other, "accuracy_by_task") == [(1, 0.75), (2, 0.5)]
    assert points(other, "score/worst_accuracy") == [(2, 0.5)]
    assert "average_accuracy" not in other.Tags()["tensors"]


def test_writing_an_experiment_again_gives_the_same_bytes(tmp_path):
    runs = {"a": results(seed=1), "b": results(seed=2)}
    before = {path: path.read_bytes() for path in tensorboard_runs.log_experiment(tmp_path, runs)}
    assert {path: path.read_bytes() for path in tensorboard_runs.log_experiment(tmp_path, runs)} == before
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before)


def test_hyperparameters_of_a_run_that_differ_from_the_defaults_come_first(tmp_path):
    tensorboard_runs.log_run(tmp_path, results(final_prune=0.5, seed=7), Config().to_json())
    infos, first, _ = declared(events(tmp_path))
    assert first == ["final_prune", "seed"]
    assert not {"output_dir", "data_dir", "hosts", "max_bytes"} & set(infos)
    name, values = session(events(tmp_path))
    assert (name, values["final_prune"], values["optimizer"]) == ("run", 0.5, "adam")
    assert set(values) == set(infos)


def test_points_are_appended(tmp_path):
    path = tmp_path / "new" / f"{PREFIX}0"
    for step, value in ((1, 0.5), (2, None), (3, 0.25)):
        event_files.append(path, [(step, event_files.scalars({"a": value}))])
    assert points(events(path.parent), "a") == [(1, 0.5), (3, 0.25)]
