"""What this library needs of Keras that Keras does not export: every private import of it is here."""

from keras.src.backend import in_stateless_scope
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional
from keras.src.saving.keras_saveable import KerasSaveable

__all__ = ["Functional", "KerasSaveable", "global_state", "in_stateless_scope"]
