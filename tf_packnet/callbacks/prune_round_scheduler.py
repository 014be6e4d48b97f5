"""The night: prune rounds on a schedule, as a Keras callback."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tf_packnet import lifecycle, optimizers, ownership
from tf_packnet.callbacks.equal_share import EqualShare
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.policies import PRUNE_SCOPES
from tf_packnet.ranking import keep_masks
from tf_packnet.tfmot import PruningSchedule


class PruneRoundScheduler(keras.callbacks.Callback):
    """Prunes the open task's candidates at the start of the epochs that `schedule` names (Algorithm 1, the `N` rounds).

    ```python
    packed.fit(data, epochs=72, callbacks=[
        tp.PruneRoundScheduler(tp.EqualShare(final_prune=0.95, num_tasks=5, rounds=8)), ...])
    ```

    After round `n` of a task that began with `c` candidates in a layer, exactly `round(c * (1-z)^n)` of them remain:
    those of largest magnitude, ties to the lower index. `sparsity`, the pruned share of the task's candidates, is added
    to the epoch's logs.

    Args:
        schedule: `EqualShare`, or any TF-MOT `PruningSchedule`; its step counts the epochs of this `fit`, from 0.
        scope: How a round's count is shared between layers: `layer`, `global` or `erk`.
        reset_optimizer: Whether the optimizer starts afresh when the night begins.

    Attributes:
        rounds: What was done, one dict a round: `round`, `epoch` (0-based), `kept` (by weight path), `sparsity`.
    """

    def __init__(self, schedule: PruningSchedule, scope: str = "layer", reset_optimizer: bool = True):
        super().__init__()
        if not callable(schedule):
            raise ArgumentError("schedule", "tp.EqualShare or another TF-MOT PruningSchedule", schedule)
        check_choice("scope", scope, PRUNE_SCOPES)
        self.schedule = schedule
        self.scope = scope
        self.reset_optimizer = reset_optimizer
        self.rounds: list[dict[str, Any]] = []

    def check_fit(self, model: keras.Model, callbacks: Sequence[keras.callbacks.Callback], epochs: int) -> None:
        """Raises ArgumentError if what comes beside it in a `fit` would bring back weights that it prunes."""
        schedule = self._bind(epochs)
        if isinstance(schedule, EqualShare) and not 0 <= lifecycle.committed_tasks(model) < schedule.num_tasks:
            expected = f"more than the {lifecycle.committed_tasks(model)} tasks that the pack has already"
            raise ArgumentError("num_tasks", expected, schedule.num_tasks)
        last = max((epoch for epoch in range(epochs) if self._kept_fraction(epoch) is not None), default=0)
        for other in callbacks:
            if not isinstance(other, keras.callbacks.EarlyStopping) or not other.restore_best_weights:
                continue
            if other.start_from_epoch < last:
                raise ArgumentError(
                    "start_from_epoch",
                    f"at least {last} in EarlyStopping(restore_best_weights=True), the epoch of the last prune round: "
                    "the best weights of before are not pruned",
                    other.start_from_epoch,
                )

    def _bind(self, epochs: int) -> PruningSchedule:
        """The schedule on the budget of a `fit`."""
        self._bound = self.schedule
        if isinstance(self.schedule, EqualShare) and self.schedule.epochs is None:
            self._bound = self.schedule.for_epochs(epochs)
        return self._bound

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not lifecycle.has_open_task(self.model):
            raise RuntimeError("no task is open, so there is nothing to prune: call begin_task before this fit")
        self.rounds = []
        self._bind(self.params["epochs"])
        if self.reset_optimizer:
            with lifecycle.strategy_scope(self.model):
                for optimizer in optimizers.all_of(self.model):
                    optimizers.reset(optimizer)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        kept_fraction = self._kept_fraction(epoch)
        if kept_fraction is not None:
            self._prune(epoch, kept_fraction)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs["sparsity"] = self.rounds[-1]["sparsity"] if self.rounds else 0.0

    def on_train_end(self, logs: dict | None = None) -> None:
        rounds = getattr(self._bound, "rounds", len(self.rounds))
        if len(self.rounds) < rounds:
            warnings.warn(
                f"the fit ended after {len(self.rounds)} of {rounds} prune rounds: the task keeps more than its share "
                "of the network, and later tasks will find less. Stop only after the last round, or plan fewer",
                stacklevel=2,
            )

    def _kept_fraction(self, epoch: int) -> float | None:
        """Share of the task's candidates to keep from `epoch` on, or None when no round falls on it."""
        if isinstance(self._bound, EqualShare):  # asked in its own terms: 1 - (1 - x) is not always x
            prune_round = self._bound.round_at(epoch)
            return None if prune_round is None else self._bound.kept_fraction(prune_round)
        should_prune, sparsity = self._bound(np.int64(epoch))
        return 1.0 - float(sparsity) if bool(should_prune) else None

    def _prune(self, epoch: int, kept_fraction: float) -> None:
        weights = lifecycle.masked_weights(self.model)
        owners = [w.owner_map() for w in weights.values()]
        # While a task is open, whatever is free was its candidate when it began.
        began_with = [ownership.count_uncommitted(owner) for owner in owners]
        if type(self).score is PruneRoundScheduler.score:
            # Taken chunk by chunk: the magnitudes of the largest kernel would be most of the memory of a round.
            scores, key = (w.importance() for w in weights.values()), np.abs
        else:
            scores, key = (self.score(path, w.values()) for path, w in weights.items()), np.asarray
        keep = keep_masks(
            scores=scores,
            key=key,
            eligible=[ownership.candidates(owner) for owner in owners],
            num_candidates=began_with,
            kept_fraction=kept_fraction,
            scope=self.scope,
            erk_cap=self._erk_cap(),
        )
        with lifecycle.strategy_scope(self.model):
            for weight, mask in zip(weights.values(), keep, strict=True):
                weight.prune(mask)
        kept = {path: int(np.count_nonzero(mask)) for path, mask in zip(weights, keep, strict=True)}
        self.rounds.append(
            {
                "round": len(self.rounds) + 1,
                "epoch": epoch,
                "kept": kept,
                "sparsity": 1.0 - sum(kept.values()) / max(1, sum(began_with)),
            }
        )

    def score(self, path: str, values: np.ndarray) -> np.ndarray:
        """How much each weight of the kernel at `path` is worth keeping: its magnitude. Override to rank otherwise."""
        return np.abs(values)

    def _erk_cap(self) -> float:
        """No layer gives this task more than an even split of it between the tasks that are still to come."""
        if not isinstance(self._bound, EqualShare):
            return 1.0
        return self._bound.largest_share(lifecycle.committed_tasks(self.model))
