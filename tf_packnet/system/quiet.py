"""Starts TensorFlow without its usual messages on standard error."""

import contextlib
import gc
import logging
import os
import re
import sys
from collections.abc import Iterator

from tf_packnet.system import interruption, memory

# Messages that TensorFlow's C++ code prints at every start, about the CPU features and GPUs that it finds or misses.
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
    """Import TensorFlow and Keras, and initialize the devices, without TensorFlow's usual messages.

    Args:
        on_cpu: Whether to hide the GPUs, for commands that do not train: another process may have reserved all GPU
            memory for training. Moreover, an id outside the vocabulary of an embedding is an error on CPU, but not on
            GPU.

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
    # Exclude the million objects of the imported modules from garbage collection, which would traverse them repeatedly.
    # This saves a tenth of the time of a short run.
    gc.collect()
    gc.freeze()


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Return False for advice to the programmer: networks are traced for each number of classes, on purpose."""
    return "triggered tf.function retracing" not in record.getMessage()


@contextlib.contextmanager
def standard_error_filtered() -> Iterator[None]:
    """Context manager that removes TensorFlow's usual messages from what any code writes to file descriptor 2."""
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
