"""Writes TensorBoard's event files without TensorFlow, which the process of an experiment does not load."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

# TensorBoard reads the files whose names begin with this prefix.
PREFIX = "events.out.tfevents."


def append(path: Path, points: Iterable[tuple[int, Summary]]) -> None:
    """Append summaries to an event file; create the file and its folder if they do not exist.

    The same points always give the same bytes: the wall time of an event is its step.

    Args:
        path: The file. Its name begins with `PREFIX`.
        points: Pairs of step and summary, by ascending step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        writer = RecordWriter(file)
        if file.tell() == 0:
            writer.write(Event(file_version="brain.Event:2").SerializeToString())
        for step, summary in points:
            writer.write(Event(wall_time=step, step=step, summary=summary).SerializeToString())


def scalars(values: Mapping[str, float | None], descriptions: Mapping[str, str] | None = None) -> Summary:
    """Return a summary with one scalar per tag. Tags whose value is None are left out."""
    summary = Summary()
    for tag, value in values.items():
        if value is not None:
            summary.MergeFrom(scalar_pb(tag, value, (descriptions or {}).get(tag)))
    return summary
