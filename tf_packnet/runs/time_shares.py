"""Divides the time of a run between the retrainings of its tasks."""

import datetime
import math
import time
from typing import Any

from tf_packnet.callbacks import TimeBudget
from tf_packnet.pruning import timing
from tf_packnet.pruning.policies import TRAIN
from tf_packnet.runs.config import Config
from tf_packnet.runs.workers import Workers

# Budget in seconds of a retraining whose time is already up: it gets one epoch.
_LEAST_SECONDS = 1e-3


class StageBudget(TimeBudget):
    """The time budget of one retraining of a run. All workers use the clock of the first one.

    Args:
        workers: The workers.
        limit: Total seconds, including those of an interrupted process; infinity for no limit.
        from_now: Seconds from now; infinity for no limit.
    """

    def __init__(self, workers: Workers, limit: float, from_now: float):
        seconds = min(max(limit, _LEAST_SECONDS), timing.MOST_SECONDS)
        super().__init__(seconds, clock=lambda: workers.tell(time.monotonic))
        self._workers, self._from_now, self._share = workers, from_now, min(limit, from_now)

    def seconds_to_deadline(self) -> float:
        return self._from_now

    def before(self) -> tuple[float, bool]:
        seconds, is_known = self._workers.tell(super().before)
        return seconds, is_known

    @property
    def ended(self) -> float:
        """When the last epoch ended, in seconds of `time.monotonic` on the first worker."""
        return self._mark

    def report(self, task: int) -> dict[str, Any]:
        """Return the final plan of the retraining of a task, and the time that it took, as JSON values."""
        return {
            "task": task,
            "budget": round(max(0.0, self._share), 3),
            "seconds": round(self.seconds, 3),
            "round_epochs": self.round_epochs,
            "round_seconds": [round(seconds, 3) for seconds in self.seconds_by_round],
        }


class TimeShares:
    """Gives each retraining of a run an equal share of the remaining time.

    Time to a deadline must also suffice for training the later tasks, and for evaluating and saving all unfinished
    tasks. Both are estimated by how long they took last.

    Args:
        config: The run.
        retrainings: Number of retrainings of the run.
        workers: The workers of the run; the first one decides.
    """

    def __init__(self, config: Config, retrainings: int, workers: Workers):
        self._seconds, self._is_per_task = config.time_of_retraining()
        now = datetime.datetime.now().astimezone()
        self._deadline = None if config.deadline is None else timing.moment_of(config.deadline, now)
        self._left, self._workers = retrainings, workers
        self._used = self._training = self._saving = 0.0
        self._budget: StageBudget | None = None

    def task_begins(self) -> None:
        """Note that the training of a task begins, so that the task before is saved."""
        if self._budget is not None:
            self._saving = time.monotonic() - self._budget.ended
        self._budget = None

    def stage_ends(self, record: dict[str, Any], plan: dict[str, Any] | None) -> None:
        """Note how long a stage took, from its record and the record of its plan."""
        if record["stage"] == TRAIN:
            self._training = record["seconds"]
        else:
            self._left -= 1
            self._used += plan["seconds"] if plan else 0.0

    def next_budget(self) -> StageBudget:
        """Return the time budget of the next retraining."""
        self._budget = StageBudget(self._workers, *self._workers.tell(self._shares))
        return self._budget

    def _shares(self) -> list[float]:
        limit = from_now = math.inf
        if self._seconds is not None:
            limit = self._seconds if self._is_per_task else (self._seconds - self._used) / self._left
        if self._deadline is not None:
            left = (self._deadline - datetime.datetime.now().astimezone()).total_seconds()
            from_now = (left - (self._left - 1) * self._training) / self._left - self._saving
        return [limit, from_now]
