"""`TaskRecords`, the data about the tasks of a model besides their weights. Saved with the first task-aware layer."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tf_packnet.system.arrays import content
from tf_packnet.system.limits import Bound

RECORDS, BEFORE = "records", "before"
COUNTS = ("rounds_done", "rounds_due", "rounds_planned", "rounds_from")

Values = dict[str, np.ndarray]


class Witness:
    """Outputs and checksums of a task at its commit, to detect later changes.

    Attributes:
        outputs: Outputs on synthetic inputs; empty if the model cannot be called with such inputs.
        inputs: Parameters of the inputs, see `tf_packnet.lifecycle.witness`.
        checksums: Checksum of every value that the task reads, by name, such as `dense_1/kernel`.
        environment: Versions, device and threads, on which the last bits of the outputs depend.
    """

    def __init__(
        self,
        outputs: list[np.ndarray],
        inputs: dict[str, Any] | None,
        checksums: dict[str, str],
        environment: dict[str, Any],
    ):
        self.outputs = outputs
        self.inputs = inputs
        self.checksums = checksums
        self.environment = environment

    def facts(self) -> dict[str, Any]:
        """Return all attributes except the outputs, as JSON values."""
        return {"inputs": self.inputs, "checksums": self.checksums, "environment": self.environment}


@dataclass
class Before:
    """The state of a pack before the open task began, as far as it changes while the task is open.

    Attributes:
        task: Number (1-based) of the open task.
        facts: JSON values, see `tf_packnet.lifecycle.managing`.
        values: Values of the state, by name.
    """

    task: int
    facts: dict[str, Any]
    values: Values


class TaskRecords:
    """Data about the tasks of one model that belongs to no single layer.

    Attributes:
        names: Names of the tasks that were begun, in order; the last may still be open.
        rounds_done: Number of prune rounds of the open task so far.
        rounds_due: Number of prune rounds that the schedule of the current `fit` still has to run; 0 without a
            schedule.
        rounds_planned: Number of prune rounds of the last `fit` with a schedule.
        rounds_from: First epoch of that `fit`.
        state: Values of the variables that belong to no task-aware weight, by committed task (1-based) and name. Tasks
            with equal values share the arrays.
        open_state: These values for the open task while another task is selected; otherwise empty.
        volatile: Names of the state that inference changes, such as a counter of calls.
        witnesses: Witness of each committed task.
        calibration: Mean and standard deviation of a task's scores on its validation data, by committed task (1-based)
            and method, see `tf_packnet.packed.task_inference`.
        before: The state before the open task began; None if no task was begun, or the state is unknown.
        variables: The variables whose values are in `state`, by name, after `lifecycle.bind_state`.
        loaded: Loaded values of variables that Keras does not save, until `lifecycle.bind_state` assigns them.
        functions: Traced functions that compute the outputs of witnesses; not saved.
        compiled: Keras's compiled functions for evaluation and prediction of heads that are not in use, by the heads
            for which they were traced; not saved.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.state: dict[int, Values] = {}
        self.open_state: Values = {}
        self.volatile: set[str] = set()
        self.witnesses: dict[int, Witness] = {}
        self.calibration: dict[int, dict[str, list[float]]] = {}
        self.before: Before | None = None
        self.variables: dict[str, Any] = {}
        self.loaded: Values = {}
        self.functions: dict[Any, Any] = {}
        self.compiled: dict[Any, tuple[Any, Any]] = {}
        self.begin()

    def forget_functions(self) -> None:
        """Forget all traced functions."""
        self.functions.clear()
        self.compiled.clear()

    def name_of(self, task: int) -> str:
        """Return the name of a task (1-based); `task_<number>` if it has none."""
        return self.names[task - 1] if task <= len(self.names) else f"task_{task}"

    def begin(self) -> None:
        """Reset the counts of prune rounds for a new task."""
        self.rounds_done = self.rounds_due = self.rounds_planned = self.rounds_from = 0

    def plan_rounds(self, rounds: int, first_epoch: int) -> None:
        """Record the beginning of a `fit` with `rounds` prune rounds and first epoch `first_epoch`."""
        self.rounds_due = self.rounds_planned = rounds
        self.rounds_from = first_epoch

    def round_was_run(self) -> None:
        """Record that one of the planned rounds was run."""
        self.rounds_done += 1
        self.rounds_due -= 1

    def round_was_undone(self) -> None:
        """Record that the weights from before the last round were restored."""
        self.rounds_done -= 1
        self.rounds_due += 1

    def keep_state(self, task: int, values: Mapping[str, np.ndarray]) -> None:
        """Store the state of a committed task. Values equal to those of the previous task share memory with them."""
        previous = self.state.get(task - 1, {})
        self.state[task] = {
            name: previous[name] if name in previous and same_bits(previous[name], value) else value
            for name, value in values.items()
        }

    def forget_before(self, unless: int | None) -> None:
        """Delete `before`, unless it belongs to the task with the number `unless`."""
        if self.before is not None and self.before.task != unless:
            self.before = None

    def save(self, store: dict) -> None:
        """Write the records into a Keras weights store, as JSON text and arrays. Each array is written once."""
        arrays: list[np.ndarray] = []
        index_by_id: dict[int, int] = {}

        def put(array: np.ndarray) -> int:
            if id(array) not in index_by_id:
                index_by_id[id(array)] = len(arrays)
                arrays.append(array)
            return index_by_id[id(array)]

        facts = {
            "names": self.names,
            **{name: getattr(self, name) for name in COUNTS},
            "state": {
                task: {name: put(value) for name, value in values.items()} for task, values in self.state.items()
            },
            "open_state": {name: put(value) for name, value in self.open_state.items()},
            "shown": {
                name: put(np.asarray(variable.value()))
                for name, variable in self.variables.items()
                if not isinstance(variable, keras.Variable)
            },
            "volatile": sorted(self.volatile),
            **({"calibration": self.calibration} if self.calibration else {}),
            "witnesses": {
                task: {**witness.facts(), "outputs": [put(output) for output in witness.outputs]}
                for task, witness in self.witnesses.items()
            },
        }
        store[RECORDS] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        for number, array in enumerate(arrays):
            store[f"{RECORDS}.{number}"] = array
        if self.before is not None:
            names = list(self.before.values)
            saved = {"task": self.before.task, "facts": self.before.facts, "names": names}
            store[BEFORE] = np.frombuffer(json.dumps(saved).encode(), np.uint8)
            for number, name in enumerate(names):
                store[f"{BEFORE}.{number}"] = self.before.values[name]

    def load(self, store: dict) -> None:
        """Load what `save` has written. Files of earlier versions have no records: the counts are then 0."""
        if RECORDS not in store:
            self.begin()
            return
        facts = Bound().parsed(np.asarray(store[RECORDS], np.uint8).tobytes(), RECORDS)
        arrays: dict[int, np.ndarray] = {}

        def get(number: int) -> np.ndarray:
            if number not in arrays:
                arrays[number] = np.array(store[f"{RECORDS}.{number}"])
            return arrays[number]

        def values(numbers: dict[str, int]) -> Values:
            return {name: get(number) for name, number in numbers.items()}

        self.names = [str(name) for name in facts["names"]]
        for name in COUNTS:
            setattr(self, name, int(facts.get(name, 0)))
        self.state = {int(task): values(numbers) for task, numbers in facts.get("state", {}).items()}
        self.open_state, self.loaded = values(facts.get("open_state", {})), values(facts.get("shown", {}))
        self.volatile = set(facts.get("volatile", ()))
        self.calibration = {int(task): scores for task, scores in facts.get("calibration", {}).items()}
        self.witnesses = {
            int(task): Witness(
                outputs=[get(number) for number in saved["outputs"]],
                inputs=saved["inputs"],
                checksums=saved["checksums"],
                environment=saved["environment"],
            )
            for task, saved in facts.get("witnesses", {}).items()
        }
        if BEFORE in store:
            before = Bound().parsed(np.asarray(store[BEFORE], np.uint8).tobytes(), BEFORE)
            kept = {str(name): np.array(store[f"{BEFORE}.{number}"]) for number, name in enumerate(before["names"])}
            self.before = Before(int(before["task"]), dict(before["facts"]), kept)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays have the same shape, dtype and bits."""
    if one is other:
        return True
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return np.array_equal(one.view(np.uint8), other.view(np.uint8)) if one.ndim else one.tobytes() == other.tobytes()


def checksum(value: np.ndarray) -> str:
    """Return a 64-bit hash of the content of an array, in hex."""
    return hashlib.blake2b(content(value), digest_size=8).hexdigest()
