"""Takes the gradient steps of several models side by side, in one compiled function.

The steps of a small network are too short to keep a GPU busy. A `Fleet` executes many runs in one process. Each run is
the usual code in a thread of its own. Only one thread runs at a time, see `tf_packnet.system.turns`. When the `fit` of
a model reaches its next call of many steps (`tf_packnet.training.multi_step`), its thread waits. When all models wait,
the fleet takes the steps of all calls together, see `tf_packnet.training.fleet_program`. So everything but the
arithmetic of the steps, from shuffling to prune rounds and backups, is the same as in a single run.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_packnet.structure import overrides
from tf_packnet.system import turns
from tf_packnet.training import acceleration, kernels, optimizers
from tf_packnet.training.fleet_program import Call, SharedProgram, StackedProgram, kind_of

# How long to wait for locks of other processes, in seconds, if no member can continue.
_PAUSE_SECONDS = 0.05


class Fleet:
    """Runs its members side by side until they have ended.

    Args:
        slots: Maximum number of models whose steps one compiled function takes at the same time, on a GPU.
        stacked: Whether a compiled function takes the steps of several models. Default: whether there is a GPU.
    """

    def __init__(self, slots: int, stacked: bool | None = None):
        self.slots = slots
        self.stacked = bool(acceleration.gpus()) if stacked is None else stacked
        self._members: list[turns.Member] = []
        self._calls: dict[str, list[Call]] = {}
        self._programs: dict[str, SharedProgram | StackedProgram] = {}

    @property
    def size(self) -> int:
        """The number of members that have not ended."""
        return len(self._members)

    def start(self, function: Callable[[], None]) -> None:
        """Add a member that calls `function` from the next `advance` on. The function must not raise."""
        self._members.append(turns.Member(function, self))

    def advance(self) -> None:
        """Let each member run to its next call or to its end, and then take the steps of all calls."""
        while ready := [member for member in self._members if member.ready()]:
            for member in ready:  # this may make other members ready
                member.resume()
            self._members = [member for member in self._members if not member.ended]
        if self._calls:
            self._take_calls()
        elif self._members:  # all wait for other processes
            time.sleep(_PAUSE_SECONDS)

    def train_function(self, model: keras.Model) -> Callable[[Iterator[dict[str, tf.Tensor]]], dict[str, Any]]:
        """Return a training function for Keras that takes the calls of `model` together with those of others."""
        kind = kind_of(model)

        def take_call(iterator: Iterator[dict[str, tf.Tensor]]) -> dict[str, Any]:
            call = Call(model, next(iterator))
            self._calls.setdefault(f"{kind} {call.data['rows'].shape}", []).append(call)
            turns.wait_until(lambda: call.ended)
            if call.error is not None:
                raise call.error
            return call.logs

        return take_call

    def _take_calls(self) -> None:
        by_kind, self._calls = self._calls, {}
        for kind, calls in by_kind.items():
            for first in range(0, len(calls), self.slots):
                together = calls[first : first + self.slots]
                try:
                    self._program(kind, together[0].model).take(together)
                except Exception as error:  # is raised in the threads of the models
                    for call in together:
                        call.error = error

    def _program(self, kind: str, model: keras.Model) -> SharedProgram | StackedProgram:
        if kind not in self._programs:
            self._programs[kind] = StackedProgram(model, self.slots) if self.stacked else SharedProgram(model)
        return self._programs[kind]


def of_thread() -> Fleet | None:
    """Return the fleet of which this thread is a member; None if it is in no fleet."""
    return turns.group_of_thread()


def stacks_steps() -> bool:
    """Whether this thread is a member of a fleet that stacks the variables of its models, which changes rounding."""
    fleet = of_thread()
    return fleet is not None and fleet.stacked


@contextlib.contextmanager
def joined(model: keras.Model, resident: bool) -> Iterator[None]:
    """Take the steps of `model` within the block together with the fleet of this thread, if possible.

    Args:
        model: A compiled `PackedTrainer`, ready for its first step.
        resident: Whether the model is trained on `ResidentBatches`.
    """
    fleet = of_thread()
    if fleet is None or not resident or not can_join(model, fleet.stacked):
        yield
        return
    model.train_function = fleet.train_function(model)
    try:
        yield
    finally:
        model.train_function = None


def can_join(model: keras.Model, stacked: bool) -> bool:
    """Whether the program of a fleet can take the steps of a compiled model.

    Args:
        model: The model.
        stacked: Whether the program stacks the variables of all models. XLA must then compile whole steps.
    """
    if acceleration.is_distributed(model) or model.run_eagerly or optimizers.of_user(model):
        return False
    if overrides.is_overridden(model, "train_step", "compute_loss", "compute_metrics"):
        return False
    if not stacked:
        return True
    accumulates = bool(model.optimizer.gradient_accumulation_steps)
    return model.xla == acceleration.STEP and kernels.can_compute_in_place(model) and not accumulates
