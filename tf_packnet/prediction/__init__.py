"""What a task of a pack says about new examples: `predict(asked)` reads the pack and the examples, and writes a table.

Importing it does not start TensorFlow.
"""

from tf_packnet.prediction.predicting import Asked, predict

__all__ = ["Asked", "predict"]
