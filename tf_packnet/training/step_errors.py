"""Turns errors that TensorFlow raises in a step into errors of one line."""

import contextlib
import re
from collections.abc import Callable, Iterator

import tensorflow as tf

from tf_packnet.errors import DivergedError, StepError, one_line

# Others, such as missing memory and missing files, say themselves what is wrong, and depend on the machine.
_OF_MODEL_OR_DATA = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.DataLossError)
_NON_FINITE = re.compile(r"\b(nan|inf|infinity)\b", re.IGNORECASE)
# Where TensorFlow's message says which operation failed, after the reason.
_OPERATION = re.compile(r"\n\s*(\[\[|tf2xla )|\{\{node | \[Op:")
# What TensorFlow puts before the first of several reasons, such as those of replicas.
_SEVERAL = re.compile(r"^\d+ root error\(s\) found\.\s*\(0\) [A-Z_]+: ")
# Lines before the reason that say where the operation was created.
_LOCATION = ("Graph execution error", "Detected at ", 'File "', "<stack traces unavailable>")


@contextlib.contextmanager
def reported(title: str | Callable[[], str], state: str = "") -> Iterator[None]:
    """Replace errors of TensorFlow for which the model or the data are to blame.

    Args:
        title: What was done, for the message, or a function that returns it.
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
    """Return the part of TensorFlow's message that says what is wrong, without those that say where."""
    message = _OPERATION.split(error.message.strip())[0].rstrip()
    lines = [line.strip() for line in message.rpartition("\n\n")[2].splitlines()]
    reason = " ".join(line for line in lines if not line.startswith(_LOCATION))
    reason = _SEVERAL.sub("", reason.strip())
    return one_line(reason.strip(" .:") or type(error).__name__, 300)
