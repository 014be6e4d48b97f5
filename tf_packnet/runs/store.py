"""Where the outcomes of stages lie: written whole or not at all, found by their key, shared between processes."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tf_packnet.callbacks import EpochBackup
from tf_packnet.runs import corruption
from tf_packnet.runs.stages import Stage
from tf_packnet.system import files


class StageStore:
    """A folder with a folder a stage: `stage.json`, what came of it, and `state.npz`, what the next stage builds on.

    The record stays, twice: without it the stage would have to be computed again. The state of a stage that no other
    can build on any more is dropped, since it is as large as the network. In `progress/` lies what the epochs of a
    stage that goes on have come to.

    Args:
        root: The folder; made when the first stage is written.
        damaged: Called with every file that is not as it was written; it is taken as lost. Default: a line on standard
            error.
    """

    def __init__(self, root: Path, damaged: corruption.Damaged | None = None):
        self.root = root
        self.damaged = damaged or corruption.handler(corruption.RECOMPUTE)

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """What came of `stage`; None if it is not there, or damaged."""
        entry = self._entry(stage)
        return None if entry is None else entry["record"]

    def has_state(self, stage: Stage) -> bool:
        """Whether the state after `stage` is there, as it was written."""
        entry, path = self._entry(stage), self._state(stage)
        if entry is None or not path.exists():
            return False
        if files.sha256(path) == entry["sha256"]:
            return True
        self.damaged(path)
        path.unlink(missing_ok=True)
        return False

    def state(self, stage: Stage) -> dict[str, np.ndarray]:
        """The state after `stage`."""
        with np.load(self._state(stage), allow_pickle=False) as archive:
            return dict(archive)

    def put(self, stage: Stage, record: dict[str, Any], state: dict[str, np.ndarray]) -> None:
        """Writes the outcome of `stage`, atomically."""
        folder = self.root / stage.key
        files.remove_unfinished(folder)
        with files.replacing(folder) as temporary:
            temporary.mkdir()
            np.savez(temporary / STATE, **state)
            entry = {"key": stage.key, "sha256": files.sha256(temporary / STATE), "record": record}
            for name in RECORDS:
                files.write_json(temporary / name, entry)

    def backup(self, stage: Stage) -> EpochBackup:
        """Keeps what the epochs of `stage` come to, until its outcome was put."""
        return EpochBackup(self.root / "progress" / stage.key, delete_at_end=False, on_damaged=self.damaged)

    def drop_state(self, stage: Stage) -> None:
        """Removes the state after `stage`; its record stays."""
        self._state(stage).unlink(missing_ok=True)

    def first_to_compute(self, stages: Sequence[Stage], with_state: bool) -> int:
        """Index of the first of `stages`, a whole run, that has to be computed; their number if none.

        Args:
            stages: The stages of a run, in order.
            with_state: Whether the state after the last one is wanted, not the records alone.
        """
        first = next((index for index, stage in enumerate(stages) if self._entry(stage) is None), len(stages))
        if first == len(stages) and with_state and not self.has_state(stages[-1]):
            first -= 1
        while 0 < first < len(stages) and not self.has_state(stages[first - 1]):
            first -= 1  # what a stage builds on was dropped: its own outcome will be the same again
        return first

    @contextlib.contextmanager
    def lock(self, stage: Stage) -> Iterator[None]:
        """Keeps `stage` for this process; waits while another one computes it. Freed when its holder dies."""
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{stage.key}.lock"):
            yield

    def _state(self, stage: Stage) -> Path:
        return self.root / stage.key / STATE

    def _entry(self, stage: Stage) -> dict[str, Any] | None:
        """What was put of `stage` besides its state; a copy that is lost or damaged is made again from the other."""
        paths = [self.root / stage.key / name for name in RECORDS]
        entries = [corruption.read_json(path, self.damaged) for path in paths]
        entry = next((entry for entry in entries if entry and entry.get("key") == stage.key), None)
        if entry is None or "sha256" not in entry or "record" not in entry:
            return None
        for path, found in zip(paths, entries, strict=True):
            if found != entry:
                files.write_json(path, entry)
        return entry


STATE = "state.npz"
RECORDS = ("stage.json", "stage.copy.json")
