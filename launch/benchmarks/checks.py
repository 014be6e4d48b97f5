"""Measures the fraction of a run's time that the checks of committed tasks and of gradient steps take."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from launch.benchmarks import Row
from launch.benchmarks.training import noise_images
from tf_packnet import lifecycle
from tf_packnet.runs import setup
from tf_packnet.runs.config import Config
from tf_packnet.training import trainer
from tf_packnet.training.fit_guard import FitGuard


class Stopwatch:
    """Total time spent in wrapped functions, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its time added to `seconds`. Nested calls count once."""

        def call(*args, **kwargs):
            if self._running:
                return function(*args, **kwargs)
            self._running, began = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._running = False
                self.seconds += time.perf_counter() - began

        return call


@contextlib.contextmanager
def stopwatch(*places: tuple[object, str]) -> Iterator[Stopwatch]:
    """Measure the time spent in the given functions, each a pair of object and attribute name."""
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        for place, name in places:
            stack.enter_context(mock.patch.object(place, name, watch.wrap(getattr(place, name))))
        yield watch


def checks(epochs: int) -> list[Row]:
    """Measure the checks in a run of the MNIST preset with five tasks, on noise, compared with the whole run."""
    config = Config(model="mlp", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=128)
    stream = noise_images((28, 28, 1), examples=12_000, tasks=5, batch_size=config.batch_size)
    network = setup.build_model(config, stream)
    xla = setup.choose_xla(config, network)
    approach = setup.build_approach(network, config, stream, xla, True, None, lambda task, stage: ())
    time_task_checks = stopwatch((lifecycle, "check_tasks"), (lifecycle, "record_witness"), (lifecycle, "check_finite"))
    time_epoch_checks = stopwatch(
        *((FitGuard, name) for name in ("on_epoch_begin", "on_epoch_end", "on_train_batch_end"))
    )
    time_fit_checks = stopwatch((trainer, "check_trained"))
    began = time.perf_counter()
    with time_task_checks as task_checks, time_epoch_checks as epoch_checks, time_fit_checks as fit_checks:
        for task in stream:
            approach.learn(task)
    whole = time.perf_counter() - began
    guard = epoch_checks.seconds + fit_checks.seconds
    bound = ("at most", 0.01)
    return [
        Row("checks", "witnesses and checksums, compared with the whole run", task_checks.seconds, "s", whole, bound),
        Row("checks", "guard after each epoch, compared with the whole run", guard, "s", whole, bound),
    ]
