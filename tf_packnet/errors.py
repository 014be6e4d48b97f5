"""The errors of this library. Messages about arguments say what was expected and what was received, as in Keras."""

import os
from collections.abc import Collection, Iterable
from typing import Any

from tf_packnet.text import printable, printable_lines

# Advice for messages about a class that is not registered with Keras.
HOW_TO_REGISTER = "(import the module that registers it, in a command with --layers=FILE.py)"


class ArgumentError(ValueError):
    """An invalid argument.

    The command line prints it as `--argument=received: expected ...` and exits with 2.

    Attributes:
        argument: Name of the argument, and of the command-line flag.
        expected: Description of the valid values.
        received: The invalid value.
    """

    def __init__(self, argument: str, expected: str, received: Any):
        message = f"Invalid `{argument}`: expected {expected}. Received: {argument}={received!r}"
        super().__init__(printable_lines(message))
        self.argument = argument
        self.expected = expected
        self.received = received

    def as_flag(self) -> str:
        """Return the message that the command line prints."""
        received = "" if self.received is None else f"={self.received}"
        return f"--{self.argument}{received}: expected {self.expected}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.argument, self.expected, self.received)


def one_line(text: str, longest: int = 1000) -> str:
    """Return `text` as one printable line of at most `longest` characters."""
    line = printable(" ".join(text.split()))
    half = (longest - 5) // 2
    return line if len(line) <= longest else f"{line[:half]} ... {line[-half:]}"


def first_line(error: BaseException, longest: int = 300) -> str:
    """Return the first line of an exception's message, or its class name if the message is empty.

    Args:
        error: The exception.
        longest: Maximum number of characters to return.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()[:longest]


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the first `most` of the distinct `names` for a message, then `and others` if there are more."""
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:most]) + " and others" * (len(distinct) > most)


class PackFileError(ValueError):
    """A pack file that cannot be read: missing, of a later version, damaged, or manipulated.

    Attributes:
        path: Path of the file.
        part: The invalid part of the file: `header`, `directory`, `part 'task 3'`, ...
        reason: What is wrong with this part.
    """

    def __init__(self, path: Any, part: str, reason: str):
        super().__init__(printable_lines(f"{os.fspath(path)}: {part} {reason}"))
        self.path = path
        self.part = part
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.part, self.reason)


class StoppedError(RuntimeError):
    """A run that cannot continue. The message is one line; the command line exits with 1."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class WorkerEndedError(StoppedError):
    """Another worker of the same run has ended; the command line exits with 75."""

    exit_code = 75


class FailedRunsError(StoppedError):
    """Some of several runs have failed; the others are complete."""


class DivergedError(StoppedError):
    """Training has diverged: weights, loss or gradients are NaN, infinite or out of range."""


class StepError(StoppedError):
    """TensorFlow failed in a gradient step: wrong shapes or labels, or a failed check of a layer, loss or metric."""


class FreezeError(StoppedError):
    """A weight or an output of a committed task has changed."""


class ReplicaError(StoppedError):
    """The replicas of a distribution strategy have different values of a variable."""


class CorruptionError(StoppedError):
    """A file is damaged, and `--on_corruption=fail`."""


def check_choice(argument: str, value: Any, choices: Collection[str]) -> None:
    """Raise ArgumentError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(argument, "one of " + ", ".join(choices), value)
