"""What a model keeps of its tasks besides their weights. It is saved with the first task-aware layer."""

import json
from typing import Any

import numpy as np

RECORDS = "records"
COUNTS = ("rounds_done", "rounds_due", "rounds_planned", "rounds_from")


class TaskRecords:
    """Facts about the tasks of one model, which belong to no single layer.

    Attributes:
        names: Names of the tasks that were begun, in order; the last may still be open.
        rounds_done: Prune rounds that the open task has had since it was begun.
        rounds_due: Prune rounds that its schedule still has to run; 0 without one.
        rounds_planned: Prune rounds of the last `fit` with a schedule.
        rounds_from: The epoch from which that `fit` counts its rounds.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.begin()

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

    def save(self, store: dict) -> None:
        """Writes the records into a Keras weights store."""
        facts = {"names": self.names, **{name: getattr(self, name) for name in COUNTS}}
        store[RECORDS] = np.frombuffer(json.dumps(facts).encode(), np.uint8)

    def load(self, store: dict) -> None:
        """Reads the records back. Weights without any, as those of earlier versions, have had no prune rounds."""
        if RECORDS not in store:
            self.begin()
            return
        facts: dict[str, Any] = json.loads(np.asarray(store[RECORDS], np.uint8).tobytes())
        self.names = [str(name) for name in facts["names"]]
        for name in COUNTS:
            setattr(self, name, int(facts.get(name, 0)))
