"""Ends a `fit` on time, and divides the time between the prune rounds."""

import contextlib
import datetime
import itertools
import math
import statistics
import time as clocks
from collections.abc import Callable, Iterator, Sequence

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError
from tf_packnet.pruning import timing
from tf_packnet.training.fit_checks import FitRequest

# Key of the `TimeBudget` in `params`, a dict that all callbacks of one `fit` share.
TIME = "tf_packnet/time"
# The time of the next epochs is estimated from this many last ones.
_RECENT = 3


class TimeBudget(keras.callbacks.Callback):
    """Ends a `fit` on time: before the first epoch that would exceed the budget.

    With a `PruneRoundScheduler` after it, it decides at the beginning of each epoch whether the next prune round runs.
    It estimates how many epochs fit, and divides them between the rounds as its `EqualShare` says (`uniform`, `growing`
    or `shrinking`). The argument `epochs` of `fit` is an upper bound then, and the schedule has no epochs of its own.

    ```python
    packed.fit(data, epochs=1000, callbacks=[
        tp.TimeBudget("8h"), tp.PruneRoundScheduler(tp.EqualShare(0.95, num_tasks=5, rounds=8)), ...])
    ```

    Epochs are expected to take as long as the mean of the last three, and the next epoch as long as the slowest of
    them, including validation and callbacks such as `EpochBackup`. TensorFlow compiles in the first epoch. Until a
    second epoch has run, the batches after the first and the previous `fit` give the estimate. Prune rounds are timed
    too.

    Every prune round runs, and at least one epoch follows the last one. If fewer epochs than rounds fit, some rounds
    run without an epoch between them. The `fit` ends at most one epoch late, unless an epoch takes more than twice as
    long as expected while rounds are due. Then one more epoch follows these rounds.

    A `fit` that resumes with `tp.EpochBackup` has the time that was left at the last backup, or less if `deadline` is
    nearer.

    Args:
        time: Seconds, or a text such as `90s`, `15m`, `8h` or `1h30m`.
        deadline: The time at which the `fit` must end: a `datetime`, or a text such as `07:00` (the next time that it
            is seven o'clock) or `2030-01-31T07:00`.
        clock: Returns seconds that never go backwards.

    Attributes:
        seconds: Seconds used so far.
        epoch_seconds: Seconds of each epoch, without prune rounds.
        round_seconds: Seconds of each prune round.
        round_starts: For each prune round, the number of epochs before it.
    """

    def __init__(
        self,
        time: float | str | None = None,
        deadline: str | datetime.datetime | None = None,
        clock: Callable[[], float] = clocks.monotonic,
    ):
        super().__init__()
        if time is None and deadline is None:
            raise ArgumentError("time", f"{timing.DURATION}, or a deadline", time)
        seconds = timing.seconds_of(time) if isinstance(time, str) else time
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if time is not None and not (is_number and 0 < seconds < math.inf):  # type: ignore[operator]
            raise ArgumentError("time", f"a positive number of seconds, or {timing.DURATION}", time)
        is_moment = isinstance(deadline, datetime.datetime)
        if deadline is not None and not (is_moment or (isinstance(deadline, str) and timing.is_deadline(deadline))):
            raise ArgumentError("deadline", f"a datetime, {timing.DEADLINE}", deadline)
        self.time = time
        self.deadline = deadline
        self._limit = math.inf if seconds is None else float(seconds)
        self._clock = clock
        self._reset(0.0)

    def _reset(self, now: float) -> None:
        self.seconds = 0.0
        self.epoch_seconds: list[float] = []
        self.round_seconds: list[float] = []
        self.round_starts: list[int] = []
        self._end = math.inf  # the deadline, on the clock
        self._mark = now  # when `seconds` was set
        self._before = 0.0, False  # the last epoch of the `fit` before, as `before` returns it
        self._first: int | None = None  # the first epoch of this process, in which TensorFlow compiles
        self._batch_ends: list[float] = []  # in that epoch, from the beginning of its first batch
        self._tail = 0.0  # seconds that later callbacks took at the end of the last epoch

    @property
    def round_epochs(self) -> list[int]:
        """The current plan: the number of epochs after each prune round that has run."""
        return [end - start for start, end in self._rounds()]

    @property
    def seconds_by_round(self) -> list[float]:
        """Seconds of each prune round together with the epochs after it."""
        epochs = [sum(self.epoch_seconds[start:end]) for start, end in self._rounds()]
        return [sum(parts) for parts in zip(self.round_seconds, epochs, strict=True)]

    def _rounds(self) -> Iterator[tuple[int, int]]:
        return itertools.pairwise([*self.round_starts, len(self.epoch_seconds)])

    def check_fit(self, model: keras.Model, request: FitRequest) -> None:
        """Raise ArgumentError if the deadline has passed, or another callback could not resume with the time left."""
        self.seconds_to_deadline()
        for other in request.callbacks:
            if isinstance(other, TimeBudget) and other is not self:
                raise ArgumentError("callbacks", "one TimeBudget per fit", "several")
            if isinstance(other, keras.callbacks.BackupAndRestore):
                expected = "tp.EpochBackup with TimeBudget, to resume with the time that is left"
                raise ArgumentError("callbacks", expected, type(other).__name__)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.params[TIME] = self
        now = self._clock()
        self._reset(now)
        self._end = now + self.seconds_to_deadline()
        self._before = self.before()

    def before(self) -> tuple[float, bool]:
        """Return the seconds of the last epoch of the previous `fit`, and whether they exclude compilation.

        The seconds are 0 if that epoch had another number of steps, or there was none.
        """
        record = getattr(self.model, "step_record", None)
        steps, seconds, is_known = record.epoch if record else (None, 0.0, False)
        return (seconds, is_known) if steps is not None and steps == self.params.get("steps") else (0.0, False)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._began, self._pruned = self._clock(), 0.0
        if self._first is None:
            self._first = len(self.epoch_seconds)
        else:
            self._tail = self._began - self._mark
            self.epoch_seconds[-1] += self._tail

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if batch == 0 and self._first == len(self.epoch_seconds):
            self._batch_ends = [self._clock()]

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._first == len(self.epoch_seconds):
            self._batch_ends.append(self._clock())

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        now = self._clock()
        self.seconds += now - self._mark
        self._mark = now
        self.epoch_seconds.append(now - self._began - self._pruned)
        rounds_due = lifecycle.records(self.model).rounds_due if self.round_starts else 0
        if not rounds_due and not self._another_epoch_fits():
            self.model.stop_training = True

    @contextlib.contextmanager
    def timed_round(self) -> Iterator[None]:
        """Measure the time of the block, which runs a prune round."""
        began = self._clock()
        yield
        took = self._clock() - began
        self._pruned += took
        self.round_seconds.append(took)
        self.round_starts.append(len(self.epoch_seconds))

    def is_round_due(self, weights: Sequence[int], epochs_left: int) -> bool:
        """Return whether the next prune round runs before the epoch that begins now.

        Args:
            weights: The proportions in which rounds get epochs, starting with the last round that has run.
            epochs_left: Maximum number of epochs that may follow, including this one.
        """
        done = len(self.epoch_seconds) - self.round_starts[-1]
        left = self._left() - (len(weights) - 1) * statistics.fmean(self.round_seconds)
        recent, is_known = self._recent()
        slowest, mean = max(recent), statistics.fmean(recent)
        fitting = left / mean if mean else math.inf
        if left <= 0 or (is_known and left < 2 * slowest):
            fitting = left / slowest if slowest else 0.0
        elif not is_known and left >= slowest:
            fitting = math.inf  # wait for another epoch: the last rounds can run after it
        return done >= timing.length_of_first(done + max(1, int(min(fitting, epochs_left))), weights)

    def _another_epoch_fits(self) -> bool:
        left = self._left() - self._tail
        recent, is_known = self._recent()
        return left >= max(recent) if is_known else left > 0

    def _recent(self) -> tuple[list[float], bool]:
        """Return the seconds of the last epochs, and whether they exclude compilation."""
        recent = [seconds for epoch, seconds in enumerate(self.epoch_seconds) if epoch != self._first][-_RECENT:]
        if recent:
            return recent, True
        before, is_known = self._before
        if not self.epoch_seconds:
            return [before], is_known
        seconds, ends = self.epoch_seconds[-1], self._batch_ends
        if len(ends) > 2:  # the first batch took longer than the others because of the compilation
            seconds -= max(0.0, ends[1] - ends[0] - (ends[-1] - ends[1]) / (len(ends) - 2))
        return [min(seconds, before or seconds)], len(ends) > 2 or is_known

    def _left(self) -> float:
        now = self._clock()
        return min(self._limit - self.seconds - (now - self._mark), self._end - now)

    def seconds_to_deadline(self) -> float:
        """Return the seconds from now to the deadline; infinity without one.

        Raises:
            ArgumentError: If the deadline has passed.
        """
        if self.deadline is None:
            return math.inf
        now = datetime.datetime.now().astimezone()
        moment = self.deadline
        moment = timing.moment_of(moment, now) if isinstance(moment, str) else moment.astimezone()
        timing.check_is_ahead(moment, now)
        return (moment - now).total_seconds()
