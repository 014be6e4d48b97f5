"""Ends a fit whose steps went wrong: bad data, a non-finite loss, non-finite weights. The task keeps finite values."""

import math
import time
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.errors import DivergedError
from tf_packnet.layers.weights import view
from tf_packnet.pruning.ownership import candidates
from tf_packnet.training import optimizers
from tf_packnet.training.gradient_step import moving_state
from tf_packnet.training.step_check import Problem

# Between two looks at what the compiled steps recorded, and at least between two copies of the weights.
SECONDS = 1.0

_WHAT = {
    Problem.INPUTS: "the inputs of a batch contain NaN or infinity",
    Problem.LABELS: "a batch has labels outside the range of the loss, such as a class number without an output",
    Problem.IDS: "a batch has ids outside the vocabulary of an embedding layer",
    Problem.LOSS: "the loss is NaN or infinite",
    Problem.GRADIENTS: "gradients are NaN or infinite",
}
_ADVICE = "Try a smaller learning rate, or clipped gradients"


class FitGuard(keras.callbacks.Callback):
    """Raises DivergedError when a step was refused, see `StepCheck`, or when loss or weights are not finite.

    A refused step has changed nothing. Steps that cannot be checked one by one, in a distribution strategy, are checked
    after every epoch. Weights that are not finite then are put back as they were at most an epoch or a second before.

    Args:
        title: What is being trained, for the message.
    """

    def __init__(self, title: str = "fit"):
        super().__init__()
        self.title = title
        self.epoch = 0
        self._kept: list[tuple[Any, np.ndarray]] = []
        self._looked = self._copied = 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.model.step_record.problem.assign(0)
        self.model.step_record.guarded = True
        self._kept = []
        self._looked = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch = epoch
        if not self._kept:
            variables = [*self.model.trainable_variables, *moving_state(self.model)]
            self._kept = [(variable, np.empty_like(view(variable))) for variable in variables]
        elif time.monotonic() - self._copied < SECONDS:
            return
        self._copied = time.monotonic()
        for variable, kept in self._kept:  # into the same memory each time: new memory takes longer than the copy
            np.copyto(kept, view(variable))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now = time.monotonic()
        if now - self._looked > SECONDS:
            self._looked = now
            self._check_steps()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._check_steps()
        loss = float((logs or {}).get("loss", 0.0))
        if math.isfinite(loss) and self._finite():
            return
        broken = broken_weights(self.model)
        self.undo()
        raise DivergedError(diverged(self.title, epoch, loss, broken))

    def on_train_end(self, logs: dict | None = None) -> None:
        self.model.step_record.guarded = False

    def _finite(self) -> bool:
        values = (view(variable) for variable, _ in self._kept)
        return all(np.isfinite(value).all() for value in values if value.dtype.kind not in "iub")

    def failed(self, error: tf.errors.InvalidArgumentError) -> DivergedError:
        """What to raise for an error of TensorFlow's in the middle of a step."""
        for weight in lifecycle.masked_weights(self.model).values():  # the step may have held whole kernels
            weight.zero_outside(candidates(weight.owner_map()))
        return DivergedError(f"{self.title}: epoch {self.epoch + 1}: {_reason(error)}. The step was not taken")

    def undo(self) -> None:
        """If any weights or statistics are not finite, puts back those of at most an epoch or a second before."""
        if self._finite():
            return
        with lifecycle.strategy_scope(self.model):
            for variable, kept in self._kept:
                variable.assign(kept)
            for optimizer in optimizers.all_of(self.model):
                optimizers.reset(optimizer)

    def _check_steps(self) -> None:
        try:
            check_steps(self.model, f"{self.title}: ", f" in epoch {self.epoch + 1}")
        except DivergedError:
            self.undo()
            raise


def check_steps(model: keras.Model, before: str = "", after: str = "") -> None:
    """Raises DivergedError if a compiled step of `model` was refused, see `StepCheck`.

    Args:
        model: A `PackedTrainer`.
        before: What the message begins with.
        after: When it was, for the message.
    """
    problem = Problem(int(model.step_record.problem.numpy()))
    if problem == Problem.NONE:
        return
    said = f"{before}{_WHAT[problem]}{after}"
    if problem in (Problem.LOSS, Problem.GRADIENTS):
        said += f", the training has diverged. {_ADVICE}"
    raise DivergedError(f"{said}. That step changed nothing, and the task is still open")


def broken_weights(model: keras.Model) -> list[str]:
    """Paths of the weights in training that are not finite."""
    return [path for path, values in lifecycle.trained_values(model) if not np.isfinite(values).all()]


def diverged(title: str, epoch: int, loss: float, broken: Iterable[str]) -> str:
    """The message of a DivergedError after an epoch (0-based)."""
    broken = list(broken)
    kind = "not a number" if math.isnan(loss) else "infinite"
    what = f"the loss is {kind}" if not math.isfinite(loss) else "weights are NaN or infinite"
    listed = ", ".join(broken[:3]) + " and others" * (len(broken) > 3)
    where = f"not finite: {listed}" if broken else "the weights are finite"
    return (
        f"{title}: {what} in epoch {epoch + 1}, the training has diverged ({where}). {_ADVICE}; nothing of this epoch "
        "is kept"
    )


def _reason(error: tf.errors.InvalidArgumentError) -> str:
    """The line of TensorFlow's message that says what is wrong."""
    lines = [line.strip() for line in str(error.message).splitlines()]
    told = [
        line for line in lines if line and not line.startswith(("[[", "Detected at", "File ", "Graph execution", "<"))
    ]
    return (told[-1].partition("[[")[0].strip() if told else type(error).__name__)[:300]
