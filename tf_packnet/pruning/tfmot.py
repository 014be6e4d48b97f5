"""The one place that imports TensorFlow Model Optimization.

Its import sets `TF_USE_LEGACY_KERAS=1`, which would turn `tf.keras` into Keras 2 for whoever touches it later, and for
child processes. Resolving `tf.keras` first and putting the variable back leaves the process as it was.
"""

import os

import tensorflow as tf

_VARIABLE = "TF_USE_LEGACY_KERAS"
_before = os.environ.get(_VARIABLE)
_ = tf.keras.__name__  # resolve the lazy module before the variable changes its meaning
try:
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_schedule import PruningSchedule
finally:
    if _before is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = _before

__all__ = ["PruningSchedule"]
