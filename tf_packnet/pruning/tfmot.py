"""Imports pruning schedules from TensorFlow Model Optimization (TF-MOT). No other module imports TF-MOT.

Importing TF-MOT sets `TF_USE_LEGACY_KERAS=1`, which turns `tf.keras` into Keras 2 for later code and for child
processes. This module therefore resolves `tf.keras` first, and restores the variable after the import.
"""

import os

import tensorflow as tf

_VARIABLE = "TF_USE_LEGACY_KERAS"
_before = os.environ.get(_VARIABLE)
_ = tf.keras.__name__  # resolves the lazy module before the variable changes
try:
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_schedule import (
        ConstantSparsity,
        PolynomialDecay,
        PruningSchedule,
    )
finally:
    if _before is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = _before

__all__ = ["ConstantSparsity", "PolynomialDecay", "PruningSchedule"]
