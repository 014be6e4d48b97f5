"""TensorBoard logs for comparing runs: hyperparameters and scores for HPARAMS, and curves of an experiment."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

from tf_packnet.reporting import event_files, metrics
from tf_packnet.system import files
from tf_packnet.text import printable

_FILE = event_files.PREFIX + "0.runs"
# Config fields that do not matter to the scores.
_NO_EFFECT = ("data_dir", "max_bytes", "output_dir", "on_corruption", "hosts", "host_index")
_DESCRIPTIONS = {
    "average_accuracy": "mean test accuracy over the tasks learned so far; step: number of tasks learned",
    "accuracy_by_task": "test accuracy on each task after the last one; step: number of the task",
}


def log_run(directory: Path, results: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Log hyperparameters and scores of a finished run.

    Args:
        directory: The TensorBoard directory of the run.
        results: The content of its `results.json`.
        defaults: The defaults of the config fields. TensorBoard initially shows five hyperparameters. Those that differ
            from their defaults come first.
    """
    values = {name: _plain(value) for name, value in _flags(results).items()}
    changed = [name for name, value in _flags(results).items() if name not in defaults or value != defaults[name]]
    summary = _declaration({name: [value] for name, value in values.items()}, changed, _scores(results))
    summary.MergeFrom(_session(values, "run", results))
    event_files.append(directory / _FILE, [(len(results["tasks"]), summary)])


def log_experiment(directory: Path, runs: Mapping[str, dict[str, Any]]) -> list[Path]:
    """Log the runs of an experiment: the hyperparameters in which they differ, their scores, and curves over the tasks.

    Args:
        directory: The TensorBoard directory of the experiment. Existing files are replaced.
        runs: The content of each run's `results.json`, by the name of the run.

    Returns:
        The written files.
    """
    columns = _columns([_flags(results) for results in runs.values()])
    scores: dict[str, float] = {tag: value for results in runs.values() for tag, value in _scores(results).items()}
    content = {directory / _FILE: [(0, _declaration(columns, columns, scores))]}
    for index, (name, results) in enumerate(runs.items()):
        session = _session({field: values[index] for field, values in columns.items()}, name, results)
        content[directory / name / _FILE] = [*_curves(results), (len(results["tasks"]), session)]
    for path, points in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            event_files.append(temporary, points)
    return list(content)


def _flags(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results["config"].items() if name not in _NO_EFFECT}


def _columns(runs: Sequence[dict[str, Any]]) -> dict[str, list[bool | float | str]]:
    """Return the values of each field in which the runs differ; those of the seed if the runs do not differ."""
    columns: dict[str, list[bool | float | str]] = {}
    for name in dict.fromkeys(name for flags in runs for name in flags):
        values = [flags.get(name) for flags in runs]
        if name == "seed" or any(value != values[0] for value in values):
            plain = [_plain(value) for value in values]
            columns[name] = plain if len({type(value) for value in plain}) == 1 else [str(value) for value in plain]
    if len(columns) > 1 and len(set(columns.get("seed", ()))) == 1:
        del columns["seed"]
    return columns


def _plain(value: Any) -> bool | float | str:
    """Convert a value to one of the types that HPARAMS takes."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return float(value)
    return printable(",".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else value)


def _scores(results: dict[str, Any]) -> dict[str, float]:
    measures = {name: value for name, value in metrics.measures(results).items() if value is not None}
    others = {
        "worst_accuracy": min(results["accuracy"][-1]),
        "free_share": results["free_fraction"]["overall"],
    }
    return {f"score/{name}": value for name, value in {**measures, **others}.items()}


def _declaration(
    columns: Mapping[str, Sequence[bool | float | str]], first: Collection[str], scores: Collection[str]
) -> Summary:
    """Return the summary that declares hyperparameters and metrics; `first` are the hyperparameters to show first."""
    experiment = api_pb2.Experiment()
    for name, values in columns.items():
        kind = api_pb2.DataType.Value(_KINDS[type(values[0])][0])
        info = experiment.hparam_infos.add(name=name, type=kind, differs=name in first)
        info.domain_discrete.extend(sorted(set(values)))
    for tag in scores:
        experiment.metric_infos.add(name={"tag": tag}, display_name=tag.split("/")[1].replace("_", " "))
    return _plugin_summary(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))


# By the type of a value: its type in HPARAMS, and its field in the protocol buffer.
_KINDS = {
    bool: ("DATA_TYPE_BOOL", "bool_value"),
    float: ("DATA_TYPE_FLOAT64", "number_value"),
    str: ("DATA_TYPE_STRING", "string_value"),
}


def _session(values: dict[str, bool | float | str], name: str, results: dict[str, Any]) -> Summary:
    start = SessionStartInfo(group_name=printable(name))
    for field, value in values.items():
        setattr(start.hparams[field], _KINDS[type(value)][1], value)
    summary = _plugin_summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))
    summary.MergeFrom(event_files.scalars(_scores(results)))
    return summary


def _plugin_summary(tag: str, data: HParamsPluginData) -> Summary:
    """Build a summary as `tensorboard.plugins.hparams.api` does, but without importing TensorFlow."""
    data.version = metadata.PLUGIN_DATA_VERSION
    summary = Summary()
    value = summary.value.add(tag=tag, tensor=metadata.NULL_TENSOR, metadata=metadata.create_summary_metadata(data))
    value.metadata.plugin_data.content = data.SerializeToString(deterministic=True)
    return summary


def _curves(results: dict[str, Any]) -> list[tuple[int, Summary]]:
    """Return the measures after each task, and the final accuracy of each task."""
    matrix = metrics.matrix_in(results)
    points = []
    for number, accuracy in enumerate(results["accuracy"][-1], start=1):
        values: dict[str, float | None] = {"accuracy_by_task": accuracy}
        if matrix is not None:
            so_far = {name: measure(matrix[: number + 1, :number]) for name, measure in metrics.MEASURES.items()}
            values["average_accuracy"] = so_far.pop("average_accuracy")
            values |= {f"measures/{name}": value for name, value in so_far.items()}
        points.append((number, event_files.scalars(values, _DESCRIPTIONS)))
    return points
