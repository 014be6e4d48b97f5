"""TensorBoard's event files, written without TensorFlow, which the process of an experiment does not load."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

# TensorBoard reads the files whose names begin like this.
PREFIX = "events.out.tfevents."


def append(path: Path, points: Iterable[tuple[int, Summary]]) -> None:
    """Append summaries to an event file; create it, and its folder, where they do not exist.

    The same points always give the same bytes: in place of the time, events have their step.

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
    """Return a summary with a scalar per tag, without those that are None."""
    summary = Summary()
    for tag, value in values.items():
        if value is not None:
            summary.MergeFrom(scalar_pb(tag, value, (descriptions or {}).get(tag)))
    return summary
