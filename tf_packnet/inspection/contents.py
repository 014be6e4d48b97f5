"""What a pack holds, as facts: tasks, layers, room, scores."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from tf_packnet import lifecycle
from tf_packnet.inspection.capacity import Layer, Room, room_left
from tf_packnet.inspection.opened_pack import FileFacts
from tf_packnet.packed_model import PackedModel
from tf_packnet.planning import outputs_of
from tf_packnet.pruning import ownership


@dataclass(frozen=True)
class TaskFacts:
    """One committed task.

    Attributes:
        number: Its number (1-based).
        name: Its name.
        outputs: Units of its heads, by head; empty where all tasks share one.
        class_names: Names of its classes, as the run recorded them.
        weights: Prunable weights that it owns.
        share: The same as a share of all.
        when_learned: Test accuracy right after it was learned, as the run recorded it.
        accuracy: The same at the end of the run.
        bytes: What it takes of the file, where tasks lie apart.
    """

    number: int
    name: str
    outputs: dict[str, int]
    class_names: tuple[str, ...] | None
    weights: int
    share: float
    when_learned: float | None
    accuracy: float | None
    bytes: int | None

    def classes(self) -> str:
        """Its classes by name, or how many outputs it has."""
        if self.class_names:
            return ", ".join(self.class_names)
        return ", ".join(f"{units}" for units in self.outputs.values())


@dataclass(frozen=True)
class LayerFacts(Layer):
    """One kernel; see `room.Layer`.

    Attributes:
        shape: Its shape.
    """

    shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.free + sum(self.owned)


@dataclass(frozen=True)
class Inspection:
    """What a pack holds.

    Attributes:
        model: Name of the model.
        head: `per_task` or `shared`.
        freed_weights: How freed weights start the next task.
        bias_policy: What later tasks do to biases and normalisation.
        tasks: The committed tasks.
        open_task: Name of the task that was begun and not committed, if one was.
        layers: The kernels whose weights tasks own.
        weights: How many weights these have.
        free: How many of them no task owns.
        room: How many more tasks fit; None before the first.
        accuracy: `accuracy[i][j]` on task `j` after task `i` (0-based), as the run recorded it; empty without a record.
        file: Name of the file; None for a model that lies in none.
        bytes: Its size.
        one_file: Whether `save_pack` wrote it, not Keras.
        environment: Versions and machine of the run.
        notes: What a reader should know.
    """

    model: str
    head: str
    freed_weights: str
    bias_policy: str
    tasks: tuple[TaskFacts, ...]
    open_task: str | None
    layers: tuple[LayerFacts, ...]
    weights: int
    free: int
    room: Room | None
    accuracy: tuple[tuple[float, ...], ...]
    file: str | None
    bytes: int | None
    one_file: bool
    environment: dict[str, Any]
    notes: tuple[str, ...]

    def known(self) -> set[str]:
        """Which of `when_learned`, `accuracy` and `bytes` there are of any task."""
        names = ("when_learned", "accuracy", "bytes")
        return {name for name in names if any(getattr(task, name) is not None for task in self.tasks)}

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return dataclasses.asdict(self)


def inspect_pack(packed: PackedModel, file: FileFacts | None = None) -> Inspection:
    """Gathers what a pack holds; memory for it does not depend on how large the kernels are.

    Args:
        packed: The pack.
        file: What it was read from, with the results of its run.

    Returns:
        The facts; of an open task only that there is one.
    """
    done = packed.committed_tasks
    counts = {
        path: ownership.count_by_owner(weight.owner_map()) for path, weight in lifecycle.masked_weights(packed).items()
    }
    layers = tuple(
        LayerFacts(
            path,
            outputs_of(packed, path),
            tuple(map(int, count[1 : done + 1])),
            int(count[ownership.FREE]),
            tuple(lifecycle.masked_weights(packed)[path].variable.shape),
        )
        for path, count in counts.items()
    )
    names = packed.task_names
    record, note = _record_of(names[:done], layers, file)
    weights = sum(layer.weights for layer in layers)
    notes = [note] if note else []
    open_task = names[done] if len(names) > done else None  # a fresh pack is open too, but for nobody yet
    if open_task is not None:
        notes.append(f"task {open_task!r} is open: what it trains is counted as free")
    return Inspection(
        packed.name,
        packed.pack_settings.head,
        packed.pack_settings.freed_weights,
        packed.pack_settings.roles.bias_policy,
        _tasks(packed, layers, record, file),
        open_task,
        layers,
        weights,
        sum(layer.free for layer in layers),
        room_left(layers),
        tuple(map(tuple, record.get("accuracy", ()))),
        file and file.name,
        file and file.bytes,
        file is not None and file.one_file,
        record.get("environment", {}),
        tuple(notes),
    )


def _tasks(packed: PackedModel, layers, record: dict[str, Any], file: FileFacts | None) -> tuple[TaskFacts, ...]:
    weights = sum(layer.weights for layer in layers)
    heads = lifecycle.heads(packed)
    scores = record.get("accuracy", ())
    found = []
    for index, name in enumerate(packed.task_names[: packed.committed_tasks]):
        owned = sum(layer.owned[index] for layer in layers)
        known, said = index < len(scores), file.tasks.get(name, {}) if file else {}
        classes = record["tasks"][index]["class_names"] if known else said.get("class_names")
        found.append(
            TaskFacts(
                index + 1,
                name,
                {place: head.units_of(index + 1) for place, head in heads.items()},
                classes and tuple(map(str, classes)),
                owned,
                owned / weights,
                scores[index][index] if known else None,
                scores[-1][index] if known else said.get("accuracy"),
                said.get("bytes"),
            )
        )
    return tuple(found)


def _record_of(names: list[str], layers, file: FileFacts | None) -> tuple[dict[str, Any], str]:
    """What `results.json` says of these very tasks, and what to tell the reader if it says nothing.

    It is taken for the pack's if its tasks have the same names and own as many weights of each layer, as far as it
    goes: a pack may have learned more since.
    """
    if file is None or file.results is None:
        return {}, "" if file is None else file.note
    results = file.results
    try:
        learned = len(results["accuracy"])
        same = [task["name"] for task in results["tasks"][:learned]] == names[:learned] and all(
            list(layer.owned[:learned]) == results["weights"]["owned_by_layer"][layer.path][:learned]
            for layer in layers
        )
        triangular = all(len(row) == index for index, row in enumerate(results["accuracy"], start=1))
        scores = [[float(score) for score in row] for row in results["accuracy"]]
        classes = [list(task["class_names"]) for task in results["tasks"][:learned]]
        environment = dict(results["environment"])
    except (KeyError, TypeError, ValueError, IndexError):
        return {}, "results.json beside it is not that of a run"
    if not (same and triangular and learned <= len(names) and classes is not None):
        return {}, "results.json beside it is of another pack, or of an approach without tasks of their own: not used"
    return {"accuracy": scores, "tasks": results["tasks"], "environment": environment}, ""
