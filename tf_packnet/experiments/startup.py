"""Starts TensorFlow without its noise."""

import contextlib
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


def start_tensorflow() -> None:
    """Imports TensorFlow and Keras and looks for devices, with their known noise kept off standard error."""
    with _standard_error_filtered():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def _standard_error_filtered() -> Iterator[None]:
    """Holds back what is written to the file descriptor 2, by whatever language, and lets through what is no noise."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        real = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            held.seek(0)
            for line in held:
                if not _NOISE.match(line):
                    os.write(real, line)
            os.close(real)
