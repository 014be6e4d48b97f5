"""Lists, renames, abandons, forgets and infers the tasks of a pack."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.packed import task_inference
from tf_packnet.pruning import ownership
from tf_packnet.task_names import check_task_name, default_task_name, task_number

if TYPE_CHECKING:
    from tf_packnet.training.trainer import PackedTrainer as _Base
else:
    _Base = object


@dataclass(frozen=True)
class TaskSummary:
    """One task of a pack.

    Attributes:
        number: Its number (1-based): its position in the order of learning.
        name: Its name.
        num_classes: Number of outputs of its head; by head if there are several; None if the tasks share one head, or
            if the number of outputs is fixed.
        weights: Number of prunable weights that it owns; for an open task, number of its candidates.
        share: `weights` as a fraction of all prunable weights.
        is_open: Whether it is open.
        used_by: Names of the tasks that see its weights: all later ones.
        frees: Number of prunable weights that forgetting (or abandoning) it would free: all that it owns if it is the
            last task, 0 otherwise. The only task cannot be forgotten.
    """

    number: int
    name: str
    num_classes: int | dict[str, int] | None
    weights: int
    share: float
    is_open: bool
    used_by: tuple[str, ...]
    frees: int


@dataclass(frozen=True)
class Forgotten:
    """The result of `forget_task`. `str()` describes it in a sentence.

    Attributes:
        name: Name of the task.
        freed: Number of prunable weights that are free now.
        kept: Number of its prunable weights that stay, because later tasks see them.
        owner: Name of the task that owns these weights now; None if there are none.
    """

    name: str
    freed: int
    kept: int
    owner: str | None

    def __str__(self) -> str:
        if self.owner is None:
            return f"Forgot task {self.name!r}: {self.freed:,} weights are free."
        return (
            f"Forgot task {self.name!r}: no weight is free, because later tasks see its {self.kept:,} weights. "
            f"Task {self.owner!r} owns them now."
        )


class TaskManagement(_Base):
    """Mixin of `PackedModel`: manages the tasks of a pack."""

    _reset_optimizers: Callable[[], None]

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order in which they were begun; the last may still be open."""
        # Task 1 can be trained and committed without `begin_task`. It then gets the default name.
        names = list(lifecycle.records(self).names)
        for number in range(len(names) + 1, self.committed_tasks + 1):
            names.append(default_task_name(number, names))
        return names

    @property
    def committed_tasks(self) -> int:
        """Number of committed tasks."""
        return lifecycle.committed_tasks(self)

    @property
    def selected_task(self) -> int:
        """Number (1-based) of the task that the model computes as."""
        return lifecycle.selected_task(self)

    @property
    def tasks(self) -> tuple[TaskSummary, ...]:
        """The tasks that were begun, in order; the last may still be open."""
        names, committed = self.task_names, self.committed_tasks
        counts, free = np.zeros(ownership.CANDIDATE + 1, np.int64), 0
        for weight in lifecycle.masked_weights(self).values():
            owner = weight.owner_map()
            counts[: ownership.CANDIDATE] += ownership.count_by_owner(owner)
            free += int(np.count_nonzero(owner == ownership.FREE))
        total = int(counts.sum())
        candidates = int(counts[ownership.FREE]) - free
        heads = lifecycle.heads(self)
        tasks = []
        for number, name in enumerate(names, start=1):
            weights = int(counts[number]) if number <= committed else candidates
            outputs = {path: head.outputs_of(number) for path, head in heads.items()}
            tasks.append(
                TaskSummary(
                    number=number,
                    name=name,
                    num_classes=outputs if len(outputs) > 1 else next(iter(outputs.values()), None),
                    weights=weights,
                    share=weights / total,
                    is_open=number > committed,
                    used_by=tuple(names[number:]),
                    frees=weights if number == len(names) > 1 else 0,
                )
            )
        return tuple(tasks)

    @checked
    def rename_task(self, task: int | str, name: str) -> None:
        """Give a task, which may be open, another name.

        Args:
            task: Name or number (1-based) of the task.
            name: The new name, see `begin_task`.

        Raises:
            ArgumentError: If there is no such task, or the new name is invalid or taken.
            RuntimeError: During a `fit`.
        """
        self._check_no_fit("rename_task")
        names = self.task_names
        number = task_number(names, task)
        names[number - 1] = check_task_name(name, [*names[: number - 1], *names[number:]])
        lifecycle.records(self).names = names

    def abandon_task(self) -> None:
        """Undo the `begin_task` of the open task. All bits of the pack are restored, except for the optimizer.

        Raises:
            RuntimeError: If no task is open, or during a `fit`; or if the state before the task is unknown: it was not
                begun with `begin_task`, or was loaded from a file of an earlier version.
        """
        self._check_no_fit("abandon_task")
        lifecycle.abandon_task(self)
        self._renew_optimizers()

    def forget_task(self, task: int | str) -> Forgotten:
        """Remove a committed task with its head, biases, normalization, and the weights that no other task sees.

        Every task sees the weights of all earlier tasks. So only forgetting the last task frees weights, which then
        become candidates of the next task. The weights of an earlier task stay: the task after it owns them from then
        on. In both cases, the outputs of all other tasks stay bit-identical, and the numbers of the tasks after the
        forgotten one decrease by one. Files of `TaskMaskSnapshot` keep the numbers with which they were written.

        To learn a task again, forget it and begin a task with the same name.

        Args:
            task: Name or number (1-based) of the task.

        Returns:
            The numbers of weights that were freed and kept.

        Raises:
            ArgumentError: If there is no such committed task, or if it is the only task of the pack.
            RuntimeError: If a task is open, or during a `fit`.
            FreezeError: If outputs or weights of a task have changed since its commit. The pack is then unchanged.
        """
        self._check_no_fit("forget_task")
        names = self.task_names
        number = task_number(names, task, last=self.committed_tasks)
        if number > self.committed_tasks:
            raise ArgumentError("task", "a committed task; to remove the open one, call abandon_task", task)
        owned = self.tasks[number - 1]
        lifecycle.records(self).names = names
        lifecycle.forget_task(self, number)
        self._renew_optimizers()
        return Forgotten(owned.name, owned.frees, owned.weights - owned.frees, next(iter(owned.used_by), None))

    @checked
    def infer_task(self, x: Any, method: str | None = None, per: str = "example", **kwargs: Any) -> Any:
        """Infer which task examples belong to: the one whose head is most certain. The guide has measured accuracies.

        The data are read once, and each batch is computed as every task in one compiled call. Nothing else of the pack
        changes. If all tasks were committed with `TaskMaskSnapshot(calibration=...)`, their scores are standardized.

        Args:
            x: Examples, as for `predict`.
            method: The measure of certainty: `entropy` of the probabilities, `energy`, or the largest `logit`. Default:
                `logit` if all tasks are calibrated and have logits, otherwise `entropy`.
            per: `example`, or `batch` if all examples belong to one task.
            **kwargs: `tasks`, the names or numbers of the tasks to choose from, and arguments of `predict`.

        Returns:
            A list with the name of the task of each example; one name with `per="batch"`.

        Raises:
            ArgumentError: If an argument is invalid, or the tasks cannot be compared because their outputs are no class
                scores.
        """
        return task_inference.infer_task(self, x, method, per, **kwargs)

    def _renew_optimizers(self) -> None:
        """Reset the optimizers.

        Files contain the variables of the last task, so a built optimizer is rebuilt for its head.
        """
        selected, committed = self.selected_task, self.committed_tasks
        built = getattr(getattr(self, "optimizer", None), "built", False)
        if committed:
            lifecycle.select_task(self, committed)
        self._reset_optimizers()
        if built:
            self._build_optimizer()
        if committed:
            lifecycle.select_task(self, selected)

    def _check_no_fit(self, method: str) -> None:
        if self.step_record.guarded:
            raise RuntimeError(f"{method} cannot be called during a fit, for example by a callback: call it afterwards")
