"""What this library needs of Keras that Keras does not export: every private import of it is here."""

from keras.src.backend import in_stateless_scope
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional

__all__ = ["Functional", "global_state", "in_stateless_scope"]
