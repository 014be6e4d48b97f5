"""What a model keeps of its tasks besides their weights. It is saved with the first task-aware layer."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

RECORDS = "records"
COUNTS = ("rounds_done", "rounds_due", "rounds_planned", "rounds_from")

Values = dict[str, np.ndarray]


class Witness:
    """What a task computed when it was committed, to notice later that it computes something else.

    Attributes:
        outputs: Its outputs on synthetic inputs; none if the model could not be called with such.
        inputs: How the inputs were made, see `tf_packnet.lifecycle.witness`.
        checksums: Of every value that the task reads, by name, such as `dense_1/kernel`.
        environment: What decides the last bits of outputs: versions, threads, device.
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
        """All but the outputs, as JSON values."""
        return {"inputs": self.inputs, "checksums": self.checksums, "environment": self.environment}


class TaskRecords:
    """Facts about the tasks of one model, which belong to no single layer.

    Attributes:
        names: Names of the tasks that were begun, in order; the last may still be open.
        rounds_done: Prune rounds that the open task has had since it was begun.
        rounds_due: Prune rounds that its schedule still has to run; 0 without one.
        rounds_planned: Prune rounds of the last `fit` with a schedule.
        rounds_from: The epoch from which that `fit` counts its rounds.
        state: By committed task (1-based), the values of the variables that no weight of a task holds, by name. Tasks
            share the arrays that are equal.
        open_state: The same of the open task, while another one is selected; empty otherwise.
        volatile: Names of the state that inference itself changes, such as a counter of calls.
        witnesses: By committed task.
        variables: The variables whose values `state` has, by name, as far as they are known.
        loaded: Values for variables that Keras does not save, until these are known.
        functions: Traced functions that compute outputs for the witness, by what they depend on; not saved.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.state: dict[int, Values] = {}
        self.open_state: Values = {}
        self.volatile: set[str] = set()
        self.witnesses: dict[int, Witness] = {}
        self.variables: dict[str, Any] = {}
        self.loaded: Values = {}
        self.functions: dict[Any, Any] = {}
        self.begin()

    def name_of(self, task: int) -> str:
        """The name of a task (1-based), or its number."""
        return self.names[task - 1] if task <= len(self.names) else f"task_{task}"

    def begin(self) -> None:
        """Starts the count of prune rounds for a new task."""
        self.rounds_done = self.rounds_due = self.rounds_planned = self.rounds_from = 0

    def plan_rounds(self, rounds: int, first_epoch: int) -> None:
        """A `fit` begins that has to run so many prune rounds, counted from `first_epoch`."""
        self.rounds_due = self.rounds_planned = rounds
        self.rounds_from = first_epoch

    def round_was_run(self) -> None:
        """One of the planned rounds is done."""
        self.rounds_done += 1
        self.rounds_due -= 1

    def round_was_undone(self) -> None:
        """The weights of before the last round are back."""
        self.rounds_done -= 1
        self.rounds_due += 1

    def keep_state(self, task: int, values: Mapping[str, np.ndarray]) -> None:
        """Keeps the state of a committed task; what is equal to the state of the task before shares its memory."""
        before = self.state.get(task - 1, {})
        self.state[task] = {
            name: before[name] if name in before and same(before[name], value) else value
            for name, value in values.items()
        }

    def save(self, store: dict) -> None:
        """Writes the records into a Keras weights store."""
        arrays: list[np.ndarray] = []
        place: dict[int, int] = {}

        def put(array: np.ndarray) -> int:
            if id(array) not in place:
                place[id(array)] = len(arrays)
                arrays.append(array)
            return place[id(array)]

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
            "witnesses": {
                task: {**witness.facts(), "outputs": [put(output) for output in witness.outputs]}
                for task, witness in self.witnesses.items()
            },
        }
        store[RECORDS] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        for number, array in enumerate(arrays):
            store[f"{RECORDS}.{number}"] = array

    def load(self, store: dict) -> None:
        """Reads the records back. Weights without any, as those of earlier versions, have had no prune rounds."""
        if RECORDS not in store:
            self.begin()
            return
        facts = json.loads(np.asarray(store[RECORDS], np.uint8).tobytes())
        arrays: dict[int, np.ndarray] = {}

        def get(number: int) -> np.ndarray:
            if number not in arrays:
                arrays[number] = np.array(store[f"{RECORDS}.{number}"])
            return arrays[number]

        def values(places: dict[str, int]) -> Values:
            return {name: get(number) for name, number in places.items()}

        self.names = [str(name) for name in facts["names"]]
        for name in COUNTS:
            setattr(self, name, int(facts.get(name, 0)))
        self.state = {int(task): values(places) for task, places in facts.get("state", {}).items()}
        self.open_state, self.loaded = values(facts.get("open_state", {})), values(facts.get("shown", {}))
        self.volatile = set(facts.get("volatile", ()))
        self.witnesses = {
            int(task): Witness(
                [get(number) for number in told["outputs"]], told["inputs"], told["checksums"], told["environment"]
            )
            for task, told in facts.get("witnesses", {}).items()
        }


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal to the bit."""
    if one is other:
        return True
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return np.array_equal(one.view(np.uint8), other.view(np.uint8)) if one.ndim else one.tobytes() == other.tobytes()


def checksum(value: np.ndarray) -> str:
    """64 bits of a hash of an array, in hex: enough to notice a change."""
    content = np.ascontiguousarray(value)
    return hashlib.blake2b(content.reshape(-1).view(np.uint8), digest_size=8).hexdigest()
