"""What the checks of committed tasks and of gradient steps take of a run."""

import contextlib
import time
from collections.abc import Iterator
from unittest import mock

from launch.benchmarks import Row
from launch.benchmarks.training import made_up_images
from tf_packnet import lifecycle
from tf_packnet.runs import setup
from tf_packnet.runs.config import Config
from tf_packnet.training import trainer
from tf_packnet.training.fit_guard import FitGuard


class Stopwatch:
    """Adds up the seconds that functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running = False

    def timed(self, function):
        """`function`, whose time is added up; calls inside other timed calls count once."""

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
def timed(*places: tuple[object, str]) -> Iterator[Stopwatch]:
    """While it lasts the functions at these places, object and name of attribute, are timed."""
    watch = Stopwatch()
    with contextlib.ExitStack() as stack:
        for place, name in places:
            stack.enter_context(mock.patch.object(place, name, watch.timed(getattr(place, name))))
        yield watch


def checks(epochs: int) -> list[Row]:
    """The MNIST preset's run of five tasks, on noise: seconds in the checks, of the seconds of all its stages."""
    config = Config(model="mlp", train_epochs=epochs, retrain_epochs=epochs, prune_rounds=1, batch_size=128)
    stream = made_up_images((28, 28, 1), examples=12_000, tasks=5, batch_size=config.batch_size)
    xla = setup.choose_xla(config, setup.choose_strategy(config))
    approach = setup.build_approach(
        setup.build_model(config, stream), config, stream, xla, True, None, lambda task, stage: ()
    )
    of_tasks = timed((lifecycle, "check_tasks"), (lifecycle, "record_witness"), (lifecycle, "check_finite"))
    of_epochs = timed(*((FitGuard, name) for name in ("on_epoch_begin", "on_epoch_end", "on_train_batch_end")))
    of_fits = timed((trainer, "check_trained"))
    began = time.perf_counter()
    with of_tasks as tasks, of_epochs as guards, of_fits as fits:
        for task in stream:
            approach.learn(task)
    whole = time.perf_counter() - began
    share = ("at most", 0.01)
    return [
        Row("checks", "witnesses and checksums of committed tasks, of a run", tasks.seconds, "s", whole, share),
        Row("checks", "guard after each epoch, of a run", guards.seconds + fits.seconds, "s", whole, share),
    ]
