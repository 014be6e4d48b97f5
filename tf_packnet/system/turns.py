"""Threads that take turns: one runs until it waits for something, then another one.

So code that was written for one run at a time, with random generators that the whole process shares, can do many runs
side by side. Each member has states of the global generators of its own.
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
    """A function in a thread that takes turns with others.

    Args:
        function: What the thread calls.
        group: What `group_of_thread` returns in it.

    Attributes:
        ended: Whether the function has returned or raised.
        ready: Whether the thread can go on: what it waits for has happened.
    """

    def __init__(self, function: Callable[[], None], group: Any = None):
        self.ended = False
        self.ready: Callable[[], bool] = lambda: True
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._generators = _generators()
        self._function, self._group = function, group
        threading.Thread(target=self._run, daemon=True).start()

    def resume(self) -> None:
        """Give the thread its turn, and return when it waits or has ended."""
        others = _generators()
        _set_generators(self._generators)
        self._turn.release()
        self._back.acquire()
        self._generators = _generators()
        _set_generators(others)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Let others take their turns until `ready()`. Called in the thread of this member."""
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
    """Return the group of the member whose thread this is; None in other threads."""
    return getattr(_thread, "group", None)


def wait_until(ready: Callable[[], bool]) -> None:
    """Wait until `ready()`. A member lets others take their turns."""
    member = getattr(_thread, "member", None)
    if member is not None:
        if not ready():
            member.wait_until(ready)
        return
    while not ready():
        time.sleep(_POLL_SECONDS)


def _generators() -> tuple[Any, ...]:
    """Return the states of the generators of Python, NumPy and TensorFlow that a process has once."""
    from tensorflow.python.eager import context

    tensorflow = context.context()
    return random.getstate(), np.random.get_state(), tensorflow._seed, getattr(tensorflow, "_rng", None)


def _set_generators(states: tuple[Any, ...]) -> None:
    from tensorflow.python.eager import context

    random.setstate(states[0])
    np.random.set_state(states[1])
    tensorflow = context.context()
    tensorflow._seed, tensorflow._rng = states[2:]
