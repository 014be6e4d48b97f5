"""What a model keeps of its tasks besides their weights. It is saved with the first task-aware layer."""

import json
from typing import Any

import numpy as np

RECORDS = "records"


class TaskRecords:
    """Facts about the tasks of one model, which belong to no single layer.

    Attributes:
        names: Names of the tasks that were begun, in order; the last may still be open.
        rounds_done: Prune rounds that the open task has had since it was begun.
        rounds_due: Prune rounds that its schedule still has to run; 0 without one.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rounds_done = 0
        self.rounds_due = 0

    def begin(self) -> None:
        """Starts the count of prune rounds for a new task."""
        self.rounds_done = self.rounds_due = 0

    def save(self, store: dict) -> None:
        """Writes the records into a Keras weights store."""
        facts = {"names": self.names, "rounds_done": self.rounds_done, "rounds_due": self.rounds_due}
        store[RECORDS] = np.frombuffer(json.dumps(facts).encode(), np.uint8)

    def load(self, store: dict) -> None:
        """Reads the records back. Files of earlier versions have none."""
        if RECORDS not in store:
            return
        facts: dict[str, Any] = json.loads(np.asarray(store[RECORDS], np.uint8).tobytes())
        self.names = [str(name) for name in facts["names"]]
        self.rounds_done, self.rounds_due = int(facts["rounds_done"]), int(facts["rounds_due"])
