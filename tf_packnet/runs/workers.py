"""The workers of a run with `--strategy=multiworker`: they agree on what to do, and all end when one ends.

The first worker has the files, decides what is computed, and tells the others. All others are connected to it, through
the port that TensorFlow uses later. A run in one process has a single worker, which has nothing to agree on.
"""

import contextlib
import functools
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError, StoppedError, WorkerEndedError, first_line, one_line
from tf_packnet.runs import hosts, meeting
from tf_packnet.runs.config import Config
from tf_packnet.runs.hosts import Hosts
from tf_packnet.system import processes
from tf_packnet.system.links import SILENCE_SECONDS, Link
from tf_packnet.version import __version__

# How many seconds this worker may take to end by itself after another worker has ended.
GRACE_SECONDS = 10.0
# How many seconds TensorFlow may take to connect the workers, which are all running by then.
CONNECT_SECONDS = 120


class Workers:
    """The workers of a run, as seen by one of them. This base class is for runs in one process.

    Attributes:
        index: The number of this worker, from 0.
        count: The number of workers.
    """

    index, count = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the first worker, which alone reads and writes files."""
        return self.index == 0

    def tell(self, make: Callable[[], Any]) -> Any:
        """Return, on all workers, the JSON value that `make` returns on the first worker.

        Only the first worker calls it.
        """
        return make()

    def tell_arrays(self, make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """Return, on all workers, the arrays by name that `make` returns on the first worker. See `tell`."""
        return make()

    def gather(self, value: Any) -> list[Any]:
        """Return, on all workers, the JSON values of all workers, in the order of their numbers."""
        return [value]

    def check_equal(self, what: str, values: Mapping[str, Any]) -> None:
        """Wait for all workers, and check that they have the same JSON values.

        Args:
            what: What the values are, for the message.
            values: Values by name.

        Raises:
            StoppedError: On all workers, if they differ.
        """

    def strategy(self) -> Any:
        """Start TensorFlow's strategy for several workers.

        Raises:
            ArgumentError: If there is only one.
        """
        raise ArgumentError("strategy", "a run with the workers that `joined` connects", "multiworker")


@contextlib.contextmanager
def joined(config: Config) -> Iterator[Workers]:
    """Connect the workers of a run for the block, which all workers leave together.

    If another worker ends within the block, this process ends within a minute, too.

    Raises:
        ArgumentError: If the hosts are invalid.
        WorkerEndedError: If another worker does not come up, or ends.
    """
    found = hosts.find(config)
    if found is None:
        yield Workers()
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # TensorFlow would log every lost connection
    workers = ConnectedWorkers(found)
    try:
        yield workers
        workers.leave()
    except BaseException as error:
        workers.end(error)
        raise


class ConnectedWorkers(Workers):
    """Two or more workers.

    Args:
        found: Their hosts.
    """

    def __init__(self, found: Hosts):
        self.index, self.count = found.index, len(found.addresses)
        self._hosts, self._stderr = found, processes.standard_error()
        self._ended: str | None = None  # which worker has ended, and why
        self._noticed, self._lock = threading.Event(), threading.Lock()
        self._links: dict[int, Link] = {}
        for index, connection in meeting.meet(found).items():
            self._links[index] = Link(connection, functools.partial(self._on_ended, index))
        self._check_all()

    def tell(self, make: Callable[[], Any]) -> Any:
        return json.loads(self._share(lambda: json.dumps(make()).encode()))

    def tell_arrays(self, make: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        def packed() -> bytes:
            file = io.BytesIO()
            np.savez(file, **make())  # type: ignore[arg-type]  # no array is named like a parameter
            return file.getvalue()

        with np.load(io.BytesIO(self._share(packed)), allow_pickle=False) as arrays:
            return dict(arrays)

    def gather(self, value: Any) -> list[Any]:
        if not self.first:
            self._links[0].send(json.dumps(value).encode())
        return self.tell(lambda: [value, *(json.loads(self._receive(index)) for index in sorted(self._links))])

    def check_equal(self, what: str, values: Mapping[str, Any]) -> None:
        own = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
        if self.first:
            others = {index: json.loads(self._receive(index)) for index in self._links}
            difference = next(
                ((index, name) for index, theirs in others.items() for name in _different(own, theirs)), None
            )
            detail = difference and [*difference, own.get(difference[1]), others[difference[0]].get(difference[1])]
        else:
            self._links[0].send(json.dumps(own).encode())
            detail = None
        detail = self.tell(lambda: detail)
        if detail:
            index, name, ours, theirs = detail
            shown = f": {_short(ours)} on the first and {_short(theirs)} on worker {index}"
            raise StoppedError(f"{what} of {self._name(index)} differ from those of the first worker, in {name}{shown}")

    def strategy(self) -> Any:
        import keras
        import tensorflow as tf

        os.environ[hosts.VARIABLE] = self._hosts.tf_config
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        versions = {"tf_packnet": __version__, "keras": keras.__version__, "tensorflow": tf.__version__}
        self.check_equal("the versions", versions)  # waits for all: TensorFlow would wait forever for one
        with processes.ended_after(CONNECT_SECONDS):  # it waits in C++ without releasing the GIL
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        for number, handler in handlers.items():  # TensorFlow installs its own for SIGTERM, which ignores it
            signal.signal(number, handler)
        return strategy

    def leave(self) -> None:
        """Wait until all workers are done, and close the connections."""
        self._check_all()
        for link in self._links.values():
            link.leave()
        for link in self._links.values():
            while not link.has_left(0.5):
                self._check()
        for link in self._links.values():
            link.close()

    def end(self, error: BaseException) -> None:
        """End the other workers because of an error of this one.

        Raises:
            WorkerEndedError: If the error is the end of another worker.
        """
        processes.no_last_words()  # the command says why it ends
        if not isinstance(error, WorkerEndedError):
            if _comes_from_tensorflow(error) and self._noticed.wait(SILENCE_SECONDS + 5):
                self._check(error)
            self._tell_end(self.index, _reason(error))

    def _share(self, make: Callable[[], bytes]) -> bytes:
        if not self.first:
            return self._receive(0)
        content = make()
        for link in self._links.values():
            link.send(content)
        return content

    def _receive(self, index: int) -> bytes:
        while True:
            content = self._links[index].receive(0.5)
            if content is not None:
                return content
            self._check()

    def _check(self, cause: BaseException | None = None) -> None:
        if self._ended is not None:
            raise WorkerEndedError(self._ended) from cause

    def _check_all(self) -> None:
        self.check_equal("the workers", {"count": self.count})

    def _name(self, index: int) -> str:
        return f"worker {index} ({self._hosts.addresses[index]})"

    def _on_ended(self, index: int, reason: bytes | None) -> None:
        """Note that the worker at the other end of a link has ended, or has reported the end of another worker."""
        text = None
        if reason is not None:
            index, text = json.loads(reason)
        ended = f"{self._name(index)} has ended{' or does not answer' if text is None else f': {text}'}"
        if index == self.index:  # it was stopped for a while, and continues
            ended = f"the other workers have ended, because {self._name(index)} did not answer"
        with self._lock:
            if self._ended is not None:
                return
            self._ended = f"{ended}; run the same command again on every host to continue"
        self._tell_end(index, text)
        self._noticed.set()
        processes.end_after(GRACE_SECONDS, self._ended, WorkerEndedError.exit_code, self._stderr)

    def _tell_end(self, index: int, reason: str | None) -> None:
        for link in list(self._links.values()):  # a copy: links may still be added
            link.end(json.dumps([index, reason]).encode())


def _different(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]


def _short(text: str | None) -> str:
    return "nothing" if text is None else text if len(text) <= 60 else f"{text[:60]}..."


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ArgumentError):
        return one_line(error.as_flag(), 500)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    return first_line(error)


def _comes_from_tensorflow(error: BaseException) -> bool:
    """Whether a TensorFlow operation has failed, as one does that waits for a worker that has ended."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__module__ == "tensorflow.python.framework.errors_impl":
            return True
        seen = seen.__cause__ or seen.__context__
    return False
