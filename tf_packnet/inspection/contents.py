"""Collects the contents of a pack: tasks, layers, free capacity, accuracies."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tf_packnet import lifecycle
from tf_packnet.inspection.capacity import FreeCapacity, Layer, free_capacity
from tf_packnet.inspection.opened_pack import FileFacts
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.packed_model import PackedModel
from tf_packnet.planning import outputs_by_path
from tf_packnet.pruning import ownership
from tf_packnet.system.keras_internals import output_names


@dataclass(frozen=True)
class TaskFacts:
    """One committed task.

    Attributes:
        number: Its number (1-based).
        name: Its name.
        outputs: Number of outputs by head; by model output if the pack has no `Head`; empty if all tasks share one
            head.
        class_names: Recorded names of its classes; None if not recorded.
        weights: Number of prunable weights that it owns.
        share: `weights` as a fraction of all prunable weights.
        when_learned: Recorded test accuracy right after it was learned; None if not recorded.
        accuracy: Recorded test accuracy at the end of the run; None if not recorded.
        bytes: Size of its part of a `.packnet` file; None for other files.
        frees: Number of prunable weights that `packed.forget_task` would free.
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
    frees: int = 0

    def classes(self) -> str:
        """Return the names of its classes, or the number of its outputs."""
        if self.class_names:
            return ", ".join(self.class_names)
        return ", ".join(f"{units}" for units in self.outputs.values())


@dataclass(frozen=True)
class LayerFacts(Layer):
    """Ownership and shape of one kernel.

    Attributes:
        shape: Its shape.
    """

    shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.free + sum(self.owned)


@dataclass(frozen=True)
class Inspection:
    """The contents of a pack.

    Attributes:
        model: Name of the model.
        head: `per_task` or `shared`.
        freed_weights: The policy for freed weights.
        bias_policy: The policy for biases and normalization.
        tasks: The committed tasks.
        open_task: Name of the open task; None without one.
        layers: The prunable kernels.
        weights: Number of all prunable weights.
        free: Number of free weights.
        room: How many more tasks fit; None if no task is committed.
        accuracy: Recorded accuracy `accuracy[i][j]` on task `j` after task `i` (0-based); empty without a record.
        file: Name of the file; None for a model that was not loaded from a file.
        bytes: Size of the file.
        one_file: Whether it is a `.packnet` file, not a `.keras` file.
        environment: Recorded versions and machine of the run.
        notes: Remarks for the reader.
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
    room: FreeCapacity | None
    accuracy: tuple[tuple[float, ...], ...]
    file: str | None
    bytes: int | None
    one_file: bool
    environment: dict[str, Any]
    notes: tuple[str, ...]

    def known(self) -> set[str]:
        """Return which of `when_learned`, `accuracy` and `bytes` are known for at least one task."""
        names = ("when_learned", "accuracy", "bytes")
        return {name for name in names if any(getattr(task, name) is not None for task in self.tasks)}

    def to_json(self) -> dict[str, Any]:
        """Return the contents as JSON values."""
        return dataclasses.asdict(self)


def inspect_pack(packed: PackedModel, file: FileFacts | None = None) -> Inspection:
    """Collect the contents of a pack, piece by piece, so that memory use does not depend on the size of the kernels.

    Args:
        packed: The pack.
        file: Facts about the file that it was loaded from.

    Returns:
        The contents. Of an open task only the name is included.
    """
    committed, outputs = packed.committed_tasks, outputs_by_path(packed)
    layers = tuple(
        _layer_facts(path, weight, outputs[path], committed)
        for path, weight in lifecycle.masked_weights(packed).items()
    )
    names = packed.task_names
    record, note = _matching_record(names[:committed], layers, file)
    notes = [note] if note else []
    open_task = names[committed] if len(names) > committed else None  # the open task of a fresh pack has no name
    if open_task is not None:
        notes.append(f"task {open_task!r} is open: its weights are counted as free")
    return Inspection(
        model=packed.name,
        head=packed.pack_settings.head,
        freed_weights=packed.pack_settings.freed_weights,
        bias_policy=packed.pack_settings.roles.bias_policy,
        tasks=_tasks(packed, layers, record, file),
        open_task=open_task,
        layers=layers,
        weights=sum(layer.weights for layer in layers),
        free=sum(layer.free for layer in layers),
        room=free_capacity(layers),
        accuracy=tuple(map(tuple, record.get("accuracy", ()))),
        file=None if file is None else file.name,
        bytes=None if file is None else file.bytes,
        one_file=file is not None and file.one_file,
        environment=record.get("environment", {}),
        notes=tuple(notes),
    )


def _layer_facts(path: str, weight: MaskedWeight, outputs: int, committed: int) -> LayerFacts:
    counts = ownership.count_by_owner(weight.owner_map())
    return LayerFacts(
        path=path,
        outputs=outputs,
        owned=tuple(map(int, counts[1 : committed + 1])),
        free=int(counts[ownership.FREE]),
        shape=tuple(weight.variable.shape),
    )


def _tasks(
    packed: PackedModel, layers: Sequence[LayerFacts], record: dict[str, Any], file: FileFacts | None
) -> tuple[TaskFacts, ...]:
    weights = sum(layer.weights for layer in layers)
    heads = lifecycle.heads(packed)
    fixed: dict[str, int] = {}
    if not heads and packed.pack_settings.head == "per_task":
        fixed = {name: each.shape[-1] for name, each in zip(output_names(packed), packed.outputs, strict=True)}
    scores = record.get("accuracy", ())
    tasks = []
    for index, name in enumerate(packed.task_names[: packed.committed_tasks]):
        owned = sum(layer.owned[index] for layer in layers)
        in_record, of_file = index < len(scores), file.tasks.get(name, {}) if file else {}
        classes = record["tasks"][index]["class_names"] if in_record else of_file.get("class_names")
        tasks.append(
            TaskFacts(
                number=index + 1,
                name=name,
                outputs={place: head.outputs_of(index + 1) for place, head in heads.items()} or fixed,
                class_names=classes and tuple(map(str, classes)),
                weights=owned,
                share=owned / weights,
                when_learned=scores[index][index] if in_record else None,
                accuracy=scores[-1][index] if in_record else of_file.get("accuracy"),
                bytes=of_file.get("bytes"),
                frees=owned if index + 1 == len(packed.task_names) > 1 else 0,
            )
        )
    return tuple(tasks)


def _matching_record(
    names: list[str], layers: Sequence[LayerFacts], file: FileFacts | None
) -> tuple[dict[str, Any], str]:
    """Return what `results.json` records about these tasks, or an empty record and a note for the reader.

    The record belongs to the pack if its tasks have the same names and own the same number of weights in each layer.
    It may have fewer tasks, because a pack can learn more tasks later.
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
        return {}, "results.json in the same folder is not that of a run"
    if not (same and triangular and learned <= len(names) and classes is not None):
        return {}, (
            "results.json in the same folder is not used: it belongs to another pack, to an approach that does not "
            "learn task by task, or to this pack before a task was renamed or forgotten"
        )
    return {"accuracy": scores, "tasks": results["tasks"], "environment": environment}, ""
