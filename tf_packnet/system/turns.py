"""Threads that take turns: one runs until it waits for something, then another one.

In this way, code that was written for one run per process can do many runs concurrently, although all runs share the
global random generators. Each member has its own states of the global generators.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_POLL_SECONDS = 0.05
_thread = threading.local()


class Member:
    """A function in a thread that takes turns with other members.

    Args:
        function: The function that the thread calls.
        group: Result of `group_of_thread` in this thread.

    Attributes:
        ended: Whether the function has returned or raised an exception.
        ready: Function that returns whether the thread can continue: what it waits for has happened.
    """

    def __init__(self, function: Callable[[], None], group: Any = None):
        self.ended = False
        self.ready: Callable[[], bool] = lambda: True
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._generators = _generators()
        self._function, self._group = function, group
        threading.Thread(target=self._run, daemon=True).start()

    def resume(self) -> None:
        """Let the thread run until it waits or ends."""
        others = _generators()
        _set_generators(self._generators)
        self._turn.release()
        self._back.acquire()
        self._generators = _generators()
        _set_generators(others)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Let other members take their turns until `ready()` returns True. Called in the thread of this member."""
        self.ready = ready
        self._back.release()
        self._turn.acquire()

    def _run(self) -> None:
        _thread.member, _thread.group = self, self._group
        self._turn.acquire()
        try:
            self._function()
        finally:
            self.ended = True
            self._back.release()


def group_of_thread() -> Any:
    """Return the group of the member that runs in this thread; None in other threads."""
    return getattr(_thread, "group", None)


def wait_until(ready: Callable[[], bool]) -> None:
    """Wait until `ready()` returns True. In the thread of a member, other members take their turns meanwhile."""
    member = getattr(_thread, "member", None)
    if member is not None:
        if not ready():
            member.wait_until(ready)
        return
    while not ready():
        time.sleep(_POLL_SECONDS)


def _generators() -> tuple[Any, ...]:
    """Return the states of the global random generators of Python, NumPy and TensorFlow."""
    from tensorflow.python.eager import context

    tensorflow = context.context()
    return random.getstate(), np.random.get_state(), tensorflow._seed, getattr(tensorflow, "_rng", None)


def _set_generators(states: tuple[Any, ...]) -> None:
    from tensorflow.python.eager import context

    random.setstate(states[0])
    np.random.set_state(states[1])
    tensorflow = context.context()
    tensorflow._seed, tensorflow._rng = states[2:]
