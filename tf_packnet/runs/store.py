"""The store of finished stages: written atomically, looked up by key, shared between processes.

`StageStore` is the folder. `StoredStages` takes one run through its stages: it restores the last stored stage, reuses
stored stages, stores computed ones, and deletes states that no later stage needs.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tf_packnet.callbacks import EpochBackup
from tf_packnet.errors import StoppedError
from tf_packnet.pruning.policies import PRUNE_RETRAIN
from tf_packnet.runs import corruption, stage_folder
from tf_packnet.runs.stage_folder import PROGRESS, StageFolder
from tf_packnet.runs.stages import Stage
from tf_packnet.runs.workers import Workers
from tf_packnet.system.archives import read_state


class StageStore:
    """A folder with one folder per stage: its record in `stage.json`, the state after it in `state.npz`.

    Both are stored twice. When a damaged copy is read, it is replaced by the other one. The record is kept: without it
    the stage would have to be computed again. The state is as large as the network, so it is deleted once no stage can
    start from it. `progress/` has the epoch backups of unfinished stages.

    Args:
        root: The folder; created when the first stage is written.
        on_damaged: Called with every damaged file, before it is repaired. Default: prints a line on standard error.
        log: Shows a line.
    """

    def __init__(
        self,
        root: Path,
        on_damaged: corruption.OnDamaged | None = None,
        log: Callable[[str], None] = corruption.print_line,
    ):
        self.root = root
        self.on_damaged = on_damaged or corruption.handler(corruption.RECOMPUTE)
        self.log = log

    def record(self, stage: Stage) -> dict[str, Any] | None:
        """Return the record of `stage`, or None if it is missing or damaged."""
        entry = None if stage.is_open else self._entry(stage)
        return None if entry is None else entry["record"]

    def plan(self, request: str) -> dict[str, Any] | None:
        """Return the record of the plan of a retraining with a time budget, by the key of its request."""
        return self.record(_plan(request))

    def lengths(self, request: str) -> list[int] | None:
        """Return the epochs after each prune round of a plan. Arguments as for `plan`."""
        return lengths_in(self._entry(_plan(request)))

    def put_plan(self, request: str, record: dict[str, Any], own: Path | None = None) -> None:
        """Write the record of a plan. Arguments as for `plan` and `put`."""
        self.put(_plan(request), record, {}, own)

    def has_state(self, stage: Stage) -> bool:
        """Whether the state after `stage` is stored. One damaged copy is repaired; two damaged copies are deleted."""
        if self._entry(stage) is None:
            return False
        folder = self.folder(stage)
        self._repair(folder, folder.damaged_states())
        return folder.has_state()

    def state(self, stage: Stage) -> dict[str, np.ndarray]:
        """Read the state after `stage`; empty if another process has stored a later stage and deleted it."""
        try:
            return read_state(self.folder(stage).state_path)
        except FileNotFoundError:
            return {}

    def put(self, stage: Stage, record: dict[str, Any], state: dict[str, np.ndarray], own: Path | None = None) -> bool:
        """Write record and state of `stage`, atomically. A different result that is already stored is kept.

        Args:
            stage: The stage.
            record: Its record.
            state: The state after it.
            own: The folder of this process for unfinished files; None if it has locked the stage.

        Returns:
            Whether this result is stored now.
        """
        is_stored = self.folder(stage).write(record, state, own)
        if not is_stored:
            self.log(f"{self.root / stage.key}: another process has stored another result of this stage, which is kept")
        return is_stored

    @contextlib.contextmanager
    def working_on(self, stage: Stage) -> Iterator[Path | None]:
        """Lock `stage` for this process, or give it a folder of its own where locks do not work.

        Yields:
            None if the stage is locked; else a folder for unfinished files, which is removed after the block.
        """
        with self.folder(stage).lock() as is_locked:
            if is_locked:
                yield None
                return
            with stage_folder.own_folder(self.root) as own:
                stage_folder.take_backups(self.root, stage.key, own)
                yield own

    def backup(self, stage: Stage, workers: Workers, own: Path | None = None) -> EpochBackup:
        """Return the callback that backs up the epochs of `stage` until the finished stage is stored."""
        return SharedBackup(workers, (own or self.root / PROGRESS) / stage.key, self.on_damaged)

    def drop_state(self, stage: Stage) -> None:
        """Delete the state after `stage`; the record stays."""
        self.folder(stage).drop_state()

    def first_to_compute(self, stages: Sequence[Stage], with_state: bool) -> int:
        """Find the first stage of a run that has to be computed.

        Args:
            stages: All stages of the run, in order.
            with_state: Whether the state after the last stage is needed, or the records suffice.

        Returns:
            Its index in `stages`; `len(stages)` if there is nothing to compute.
        """
        first = next((index for index, stage in enumerate(stages) if self.record(stage) is None), len(stages))
        missing = first
        if first == len(stages) and with_state and not self.has_state(stages[-1]):
            first -= 1
        # The state that it starts from was deleted: compute the stage before again too, with the same result.
        while 0 < first < len(stages) and not self.has_state(stages[first - 1]):
            first -= 1
        if first < missing < len(stages) and self.record(stages[missing]) is not None:
            return self.first_to_compute(stages, with_state)  # another process has stored it, and deleted that state
        return first

    def folder(self, stage: Stage) -> StageFolder:
        """Return the folder of `stage`."""
        return StageFolder(self.root / stage.key)

    def _entry(self, stage: Stage) -> dict[str, Any] | None:
        """Return the content of `stage.json`, after a repair."""
        folder = self.folder(stage)
        self._repair(folder, folder.damaged_records())
        return folder.entry()

    def _repair(self, folder: StageFolder, damaged: list[Path]) -> None:
        for path in damaged:
            self.on_damaged(path)
        folder.repair(damaged)


def lengths_in(entry: dict[str, Any] | None) -> list[int] | None:
    """Return the epochs after each prune round of a stored plan; None without a plan."""
    return None if entry is None else entry["record"]["round_epochs"]


def _plan(request: str) -> Stage:
    """Return the stage under which a plan is stored. It has no state."""
    return Stage(request, PRUNE_RETRAIN, 0, 0, shared=True)


class StoredPlans:
    """The plans of the retrainings of a run with a time budget, by the keys of their requests.

    Args:
        store: The store, which the first worker reads.
        workers: The workers of the run.

    Attributes:
        records: The records of the plans that are known so far, by request.
    """

    def __init__(self, store: StageStore, workers: Workers | None = None):
        self._store, self._workers = store, workers or Workers()
        self.records: dict[str, dict[str, Any]] = {}

    def __call__(self, request: str) -> list[int] | None:
        """Return the number of epochs after each prune round; None without a plan."""
        record = self.record(request)
        return None if record is None else record["round_epochs"]

    def record(self, request: str) -> dict[str, Any] | None:
        """Return the record of a plan, with the time that each round took; None without a plan."""
        if request and request not in self.records:
            record = self._workers.tell(lambda: self._store.plan(request))
            if record is not None:
                self.records[request] = record
        return self.records.get(request)


class SharedBackup(EpochBackup):
    """The backup of the first worker, from which all workers resume.

    Args:
        workers: The workers.
        path: As for `EpochBackup`.
        on_damaged: As for `EpochBackup`.
    """

    supports_workers = True

    def __init__(self, workers: Workers, path: Path, on_damaged: Callable[[Path], None]):
        super().__init__(path, delete_at_end=False, on_damaged=on_damaged)
        self._workers = workers

    def _read(self) -> dict[str, np.ndarray] | None:
        return dict(self._workers.tell_arrays(lambda: super(SharedBackup, self)._read() or {})) or None

    def _write(self) -> None:
        if self._workers.first:
            super()._write()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self._workers.first:
            super().on_train_end(logs)

    def remove(self) -> None:
        if self._workers.first:
            super().remove()


class Restorable(Protocol):
    """An object whose state can be captured and restored: what the stages train."""

    def state(self) -> dict[str, np.ndarray]: ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None: ...


class FinishedStage(NamedTuple):
    """The record of a stage, and whether it was in the store (`reused`) instead of computed."""

    record: dict[str, Any]
    reused: bool


class StoredStages:
    """Takes one run through its stages, in order. Restores the last stored stage on construction.

    Args:
        store: The store.
        stages: All stages of the run, in order.
        approach: The approach to train. It has the state after the last finished stage, unless only records are reused.
        with_state: Whether `approach` must have the state after every task, and the store must keep the state after the
            last stage. If not, records suffice.
        timed: Gives a context manager around writing to the store.
        workers: The workers of the run; the first one has the store.
        chain: Lists the stages of the run again, with the plans that are stored by then.
        plans: The plans of the retrainings with a time budget.
    """

    def __init__(
        self,
        store: StageStore,
        stages: Sequence[Stage],
        approach: Restorable,
        with_state: bool,
        timed: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        workers: Workers | None = None,
        chain: Callable[[], Sequence[Stage]] | None = None,
        plans: StoredPlans | None = None,
    ):
        self._store, self._stages, self._approach = store, stages, approach
        self._chain, self._plans = chain or (lambda: stages), plans or StoredPlans(store, workers)
        self._with_state, self._timed = with_state, timed
        self._workers = workers or Workers()
        self._done = self._first_to_compute = 0
        self._advance()

    @property
    def next_stage(self) -> Stage:
        """The next stage of the run."""
        return self._stages[self._done]

    def finish(self, stage: Stage, compute: Callable[[EpochBackup], dict[str, Any]]) -> FinishedStage:
        """Take the next stage from the store, or compute and store it.

        Args:
            stage: The next stage of the run.
            compute: Computes it, or the rest of it after a backup, and returns its record.
        """
        if self._done < self._first_to_compute:
            finished = self._reused(stage)
        else:
            working = self._store.working_on(stage) if self._workers.first else contextlib.nullcontext()
            with working as own:
                finished = self._restore_or_compute(stage, compute, own)
        self._done += 1
        if self._workers.first:
            self._drop_old_states()
        return finished

    def _advance(self) -> bool:
        """Restore the last stored stage. Return whether it is later than the stages that are done."""
        while True:
            first = self._workers.tell(lambda: self._store.first_to_compute(self._stages, self._with_state))
            if first <= self._done:
                return False
            only_records = first == len(self._stages) and not self._with_state
            if only_records or self._restore(self._stages[first - 1]):
                self._first_to_compute = first
                return True

    def _restore(self, stage: Stage) -> bool:
        """Restore the state after `stage`; returns whether it was still there."""
        state = self._workers.tell_arrays(lambda: self._store.state(stage))
        if state:
            self._approach.restore(state)
        return bool(state)

    def _reused(self, stage: Stage) -> FinishedStage:
        record = self._workers.tell(lambda: self._store.record(stage))
        if record is None:
            folder = self._store.root / stage.key
            raise StoppedError(f"{folder}: the record of this stage was deleted or damaged during the run")
        return FinishedStage(record, reused=True)

    def _restore_or_compute(
        self, stage: Stage, compute: Callable[[EpochBackup], dict[str, Any]], own: Path | None
    ) -> FinishedStage:
        # Another process may have stored it, and later ones, while this one waited for the lock.
        locked = stage
        if stage.is_open:
            self._stages = self._chain()
            stage = self.next_stage
        if self._is_stored(stage) and self._advance():
            return self._reused(stage)
        if self._workers.first:
            self._store.folder(stage).check_place()
        backup = self._store.backup(stage, self._workers, own)
        record = compute(backup)
        state = self._approach.state()
        if self._workers.count > 1:
            outcome = {name: record[name] for name in ("history", "committed", "learned")}
            digests = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in state.items()}
            self._workers.check_equal(f"the results of task {stage.task}, {stage.name},", {**outcome, **digests})

        self._stages = self._chain()  # the key of an open stage is now that of its plan
        planned = self.next_stage

        def put() -> bool:
            with self._timed(), self._own_folder(planned.key == locked.key, own) as folder:
                is_stored = self._store.put(planned, record, state, folder)
                if stage.is_open:  # after the result that it leads to
                    self._store.put_plan(stage.request, self._plans.records[stage.request], own)
                backup.remove()
            return is_stored

        if not self._workers.tell(put) and self._advance():
            return self._reused(planned)
        return FinishedStage(record, reused=False)

    def _own_folder(self, is_locked: bool, own: Path | None) -> AbstractContextManager[Path | None]:
        """Return the folder for unfinished files of a result: `own`, or a new one if its stage is not locked."""
        if is_locked or own is not None:
            return contextlib.nullcontext(own)
        return stage_folder.own_folder(self._store.root)

    def _is_stored(self, stage: Stage) -> bool:
        return self._workers.tell(lambda: self._store.record(stage) is not None)

    def _drop_old_states(self) -> None:
        """Delete old states. Keep the last one, from which the run resumes."""
        kept = 1 if self._with_state or self._done < len(self._stages) else 0
        for stage in self._stages[max(0, self._done - 3) : max(0, self._done - kept)]:
            if not stage.shared:
                self._store.drop_state(stage)
