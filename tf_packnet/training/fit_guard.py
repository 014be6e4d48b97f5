"""Ends a `fit` after bad data, a non-finite loss or non-finite weights, and restores finite weights if needed."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_packnet import lifecycle
from tf_packnet.errors import DivergedError, listed
from tf_packnet.layers.weights import view
from tf_packnet.pruning.ownership import candidates
from tf_packnet.training import optimizers, step_errors
from tf_packnet.training.gradient_step import assigned_in_forward_pass
from tf_packnet.training.step_check import Problem

# Minimum seconds between two reads of the recorded problem, and between two copies of the weights.
_SECONDS = 1.0

_MESSAGES = {
    Problem.INPUTS: "the inputs of a batch contain NaN or infinity",
    Problem.LABELS: "a batch has labels outside the range of the loss, such as a class number without an output",
    Problem.IDS: "a batch has ids outside the vocabulary of an embedding layer",
    Problem.LOSS: "the loss is NaN or infinite",
    Problem.GRADIENTS: "gradients are NaN or infinite",
}
_ADVICE = "Try a smaller learning rate, or clipped gradients"
_PARTLY_TAKEN = ". The step may have been taken in part, and the task is still open"


class FitGuard(keras.callbacks.Callback):
    """Raises DivergedError if a step failed its `StepCheck`, or if loss or weights are not finite after an epoch.

    A step that failed its check has changed nothing. Keras's own steps in a distribution strategy have no such checks.
    With these, the loss and the weights are checked after every epoch, and non-finite weights are replaced by a copy.
    The copy was made at the beginning of the current epoch, or of one that began at most about a second earlier.

    Args:
        title: What is being trained, for the message.

    Attributes:
        epoch: The current epoch (0-based).
    """

    def __init__(self, title: str = "fit"):
        super().__init__()
        self.title = title
        self.epoch = 0
        self._copies: list[tuple[Any, np.ndarray]] = []
        self._last_check = self._last_copy = 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.model.step_record.problem.assign(0)
        self.model.step_record.guarded = True
        self._copies = []
        self._epochs = 0
        self._last_check = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch, self._began = epoch, time.monotonic()
        if not self._copies:
            variables = [*self.model.trainable_variables, *assigned_in_forward_pass(self.model)]
            self._copies = [(variable, np.empty_like(view(variable))) for variable in variables]
        elif time.monotonic() - self._last_copy < _SECONDS:
            return
        self._last_copy = time.monotonic()
        for variable, copy in self._copies:  # reuses memory, because allocating takes longer than copying
            np.copyto(copy, view(variable))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now = time.monotonic()
        if now - self._last_check > _SECONDS:
            self._last_check = now
            self._check_steps()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._check_steps()
        seconds = time.monotonic() - self._began
        steps = (self.params or {}).get("steps")  # unknown with the user's `CallbackList`
        self.model.step_record.epoch = (steps, seconds, self._epochs > 0)
        self._epochs += 1
        loss = float((logs or {}).get("loss", 0.0))
        if math.isfinite(loss) and self._all_finite():
            return
        non_finite = non_finite_weights(self.model)
        self.restore_finite_weights()
        raise DivergedError(diverged_message(self.title, epoch, loss, non_finite))

    def on_train_end(self, logs: dict | None = None) -> None:
        self.model.step_record.guarded = False

    def _all_finite(self) -> bool:
        values = (view(variable) for variable, _ in self._copies)
        return all(np.isfinite(value).all() for value in values if value.dtype.kind not in "iub")

    @contextlib.contextmanager
    def errors_reported(self) -> Iterator[None]:
        """Replace TensorFlow's errors in the block (see `step_errors`), and clean up after them."""
        with step_errors.reported(lambda: f"{self.title}: epoch {self.epoch + 1}", _PARTLY_TAKEN):
            try:
                yield
            except tf.errors.OpError:
                if self.model is not None:  # set once Keras has read the arguments of the fit
                    self._clean_up()
                raise

    def _clean_up(self) -> None:
        for weight in lifecycle.masked_weights(self.model).values():  # they may hold whole kernels
            weight.zero_outside(candidates(weight.owner_map()))
        self._check_steps()  # the first problem may be the cause of the error
        self.restore_finite_weights()

    def restore_finite_weights(self) -> None:
        """If any weight or moving statistic is not finite, restore the last copy of all and reset the optimizers."""
        if self._all_finite():
            return
        with lifecycle.strategy_scope(self.model):
            for variable, copy in self._copies:
                variable.assign(copy)
            for optimizer in optimizers.all_of(self.model):
                optimizers.reset(optimizer)

    def _check_steps(self) -> None:
        try:
            check_steps(self.model, f"{self.title}: ", f" in epoch {self.epoch + 1}")
        except DivergedError:
            self.restore_finite_weights()
            raise


def check_steps(model: keras.Model, before: str = "", after: str = "") -> None:
    """Raise DivergedError if a compiled step of `model` failed its `StepCheck`.

    Args:
        model: A `PackedTrainer`.
        before: Beginning of the message.
        after: When the problem occurred, for the message.
    """
    problem = Problem(int(model.step_record.problem.numpy()))
    if problem == Problem.NONE:
        return
    message = f"{before}{_MESSAGES[problem]}{after}"
    if problem in (Problem.LOSS, Problem.GRADIENTS):
        message += f", the training has diverged. {_ADVICE}"
    raise DivergedError(f"{message}. That step changed nothing, and the task is still open")


def non_finite_weights(model: keras.Model) -> list[str]:
    """Return the paths of the weights in training that contain NaN or infinity."""
    return [path for path, values in lifecycle.trained_values(model) if not np.isfinite(values).all()]


def diverged_message(title: str, epoch: int, loss: float, non_finite: Sequence[str]) -> str:
    """Return the message of a DivergedError after an epoch.

    Args:
        title: What is being trained.
        epoch: The epoch (0-based).
        loss: Its loss.
        non_finite: Paths of the weights that are not finite.
    """
    if math.isfinite(loss):
        problem = "weights are NaN or infinite"
    else:
        problem = "the loss is not a number" if math.isnan(loss) else "the loss is infinite"
    weights = f"not finite: {listed(non_finite)}" if non_finite else "the weights are finite"
    return (
        f"{title}: {problem} in epoch {epoch + 1}, the training has diverged ({weights}). {_ADVICE}; nothing of this "
        "epoch is kept"
    )
