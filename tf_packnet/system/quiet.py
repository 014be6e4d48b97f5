"""Starts TensorFlow without its usual messages on standard error."""

import contextlib
import gc
import logging
import os
import re
import sys
from collections.abc import Iterator

from tf_packnet.system import interruption, memory

# What TensorFlow's C++ code prints at every start: which CPU features and GPUs it has found or not.
_NOISE = re.compile(
    rb"^(WARNING: All log messages before absl::InitializeLog|To enable the following instructions"
    rb"|.*(oneDNN custom operations are on|Could not find cuda drivers|cpu_feature_guard|failed call to cuInit"
    rb"|Unable to register cu|computation_placer already registered))"
)


def import_keras() -> None:
    """Import Keras and TensorFlow without TensorFlow's usual messages.

    Raises:
        StoppedError: If the process may not use enough memory.
    """
    if "tensorflow" in sys.modules:
        import keras
    else:
        memory.check()
        with interruption.nothing_to_save(), standard_error_filtered():
            import keras  # noqa: F401


def start_tensorflow(on_cpu: bool = False) -> None:
    """Import TensorFlow and Keras and lists the devices, without TensorFlow's usual messages.

    Args:
        on_cpu: Whether to hide the GPUs, for commands that do not train. Another process that trains may have taken all
            GPU memory. And an id outside the vocabulary of an embedding is an error on CPU, but not on GPUs.

    Raises:
        StoppedError: If the process may not use enough memory.
    """
    import_keras()
    logging.getLogger("tensorflow").addFilter(_is_no_advice)
    with interruption.nothing_to_save(), standard_error_filtered():
        import tensorflow as tf

        tf.config.list_physical_devices()
        if on_cpu:
            with contextlib.suppress(RuntimeError):  # a program that uses this library has started TensorFlow before
                tf.config.set_visible_devices([], "GPU")
    # Exclude the million objects of the imported modules from garbage collection, which would go through them again
    # and again. This saves a tenth of the time of a short run.
    gc.collect()
    gc.freeze()


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Return False for advice to the programmer: networks are traced for each number of classes, on purpose."""
    return "triggered tf.function retracing" not in record.getMessage()


@contextlib.contextmanager
def standard_error_filtered() -> Iterator[None]:
    """Remove TensorFlow's usual messages from what is written to file descriptor 2 within the block, by any code."""
    try:
        real = os.dup(2)
    except OSError:  # closed, as in a daemon
        yield
        return
    with open(os.memfd_create("standard error"), "w+b") as held:  # a temporary file needs a folder that can be written
        _flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(real, 2)
            held.seek(0)
            for line in held:
                if not _NOISE.match(line):
                    os.write(real, line)
            os.close(real)


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
