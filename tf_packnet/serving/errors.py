"""Errors that become the response to a request."""

import reprlib
from typing import Any

from tf_packnet.errors import ArgumentError, one_line

# Shortens long values.
_REPR = reprlib.Repr()
_REPR.maxlevel = _REPR.maxlist = _REPR.maxdict = 3


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, message: str):
        super().__init__(one_line(message))
        self.status = status


def invalid(field: str, expected: str, received: Any = None) -> RequestError:
    """Return the error for an invalid field of a request."""
    shown = "" if received is None else f"; received {_REPR.repr(received)}"
    return RequestError(400, f"{field}: expected {expected}{shown}")


def of_argument(error: ArgumentError) -> RequestError:
    """Return the error for an invalid argument of a function that a request has called."""
    return invalid(error.argument, error.expected, error.received)
