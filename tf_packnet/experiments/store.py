"""Where the outcomes of stages lie: written whole or not at all, found by their key, shared between processes."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tf_packnet import files
from tf_packnet.experiments.stages import Stage


class StageStore:
    """A folder with a folder a stage: `stage.json`, what came of it, and `state.npz`, what the next stage builds on.

    The record stays; the state of a stage that no other can build on any more is dropped, since it is as large as the
    network.

    Args:
        root: The folder; made when the first stage is written.
    """

    def __init__(self, root: Path):
        self.root = root

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """What came of `stage`; None if it is not there, or damaged."""
        entry = self._entry(stage)
        return None if entry is None else entry["record"]

    def has_state(self, stage: Stage) -> bool:
        """Whether the state after `stage` is there, as it was written."""
        entry, path = self._entry(stage), self._state(stage)
        return entry is not None and path.exists() and _sha256(path) == entry["sha256"]

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
            np.savez(temporary / "state.npz", **state)
            entry = {"key": stage.key, "sha256": _sha256(temporary / "state.npz"), "record": record}
            text = json.dumps(entry, indent=1, allow_nan=False)
            (temporary / "stage.json").write_text(text + "\n", encoding="utf-8")

    def drop_state(self, stage: Stage) -> None:
        """Removes the state after `stage`; its record stays."""
        self._state(stage).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the whole store."""
        shutil.rmtree(self.root, ignore_errors=True)

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
        return self.root / stage.key / "state.npz"

    def _entry(self, stage: Stage) -> dict[str, Any] | None:
        try:
            entry = json.loads((self.root / stage.key / "stage.json").read_text(encoding="utf-8"))
            return entry if entry["key"] == stage.key and "sha256" in entry and "record" in entry else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            found.update(chunk)
    return found.hexdigest()
