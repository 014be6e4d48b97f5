"""Starts TensorFlow without its noise."""

import contextlib
import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# What TensorFlow's C++ side says on every start, on any machine: which CPU features and GPUs it found or did not.
_NOISE = re.compile(
    rb"^(WARNING: All log messages before absl::InitializeLog|To enable the following instructions"
    rb"|.*(oneDNN custom operations are on|Could not find cuda drivers|cpu_feature_guard|failed call to cuInit"
    rb"|Unable to register cu|computation_placer already registered))"
)


def import_keras() -> None:
    """Imports Keras and TensorFlow, unless they are there already, without what TensorFlow always says."""
    if "tensorflow" in sys.modules:
        import keras  # noqa: F401
    else:
        with standard_error_filtered():
            import keras  # noqa: F401


def start_tensorflow(on_cpu: bool = False) -> None:
    """Imports TensorFlow and Keras and looks for devices, with their known noise kept off standard error.

    Args:
        on_cpu: Keeps this process off the GPUs: for what learns nothing. Training that goes on there leaves no memory
            to others; and a number beyond a vocabulary is an error on CPU, a vector of zeros on GPUs.
    """
    with standard_error_filtered():
        import_keras()
        import tensorflow as tf

        tf.config.list_physical_devices()
        if on_cpu:
            with contextlib.suppress(RuntimeError):  # it was started before, by whoever uses this as a library
                tf.config.set_visible_devices([], "GPU")
    # What was imported stays: a million objects that Python would otherwise go through again and again, for a tenth of
    # a short run's time.
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def standard_error_filtered() -> Iterator[None]:
    """Holds back what is written to the file descriptor 2, by whatever language, and lets through what is no noise."""
    try:
        real = os.dup(2)
    except OSError:  # closed, as in a daemon: nobody listens
        yield
        return
    with tempfile.TemporaryFile() as held:
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
