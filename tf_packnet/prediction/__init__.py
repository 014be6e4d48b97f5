"""Predicts new examples with a task of a pack. `predict(asked)` reads the pack and the examples, and writes a table.

Importing this package does not import TensorFlow.
"""

from tf_packnet.prediction.predicting import Asked, predict

__all__ = ["Asked", "predict"]
