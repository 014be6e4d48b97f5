"""Turns errors that TensorFlow raises in a step into errors with a one-line message."""

import contextlib
import re
from collections.abc import Callable, Iterator

import tensorflow as tf

from tf_packnet.errors import DivergedError, StepError, one_line

# Errors that the model or the data cause. Others, such as lack of memory, depend on the machine and are clear enough.
_OF_MODEL_OR_DATA = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.DataLossError)
_NON_FINITE = re.compile(r"\b(nan|inf|infinity)\b", re.IGNORECASE)
# The beginning of the part of TensorFlow's message that names the failed operation, after the reason.
_OPERATION = re.compile(r"\n\s*(\[\[|tf2xla )|\{\{node | \[Op:")
# TensorFlow's prefix to the first of several reasons, such as those of replicas.
_SEVERAL = re.compile(r"^\d+ root error\(s\) found\.\s*\(0\) [A-Z_]+: ")
# Lines before the reason that say where the operation was created.
_LOCATION = ("Graph execution error", "Detected at ", 'File "', "<stack traces unavailable>")


@contextlib.contextmanager
def reported(title: str | Callable[[], str], state: str = "") -> Iterator[None]:
    """Replace errors of TensorFlow that the model or the data cause.

    Args:
        title: Beginning of the message: what was being done. Or a function that returns it.
        state: End of the message.

    Raises:
        DivergedError: If a check of TensorFlow found NaN or infinity, such as `tf.debugging.check_numerics`.
        StepError: If TensorFlow failed for another reason.
    """
    try:
        yield
    except tf.errors.OpError as error:
        raised_by_python = isinstance(error, tf.errors.UnknownError) and "\nTraceback (" in error.message
        if not raised_by_python and not isinstance(error, _OF_MODEL_OR_DATA):
            raise
        reason = _reason(error)
        error_class = DivergedError if _NON_FINITE.search(reason) else StepError
        raise error_class(f"{title() if callable(title) else title}: {reason}{state}") from error


def _reason(error: tf.errors.OpError) -> str:
    """Return the reason in TensorFlow's message, without the parts that say where the error occurred."""
    message = _OPERATION.split(error.message.strip())[0].rstrip()
    lines = [line.strip() for line in message.rpartition("\n\n")[2].splitlines()]
    reason = " ".join(line for line in lines if not line.startswith(_LOCATION))
    reason = _SEVERAL.sub("", reason.strip())
    return one_line(reason.strip(" .:") or type(error).__name__, 300)
