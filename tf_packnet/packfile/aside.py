"""Networks that are made only to be looked at, and leave no trace."""

import collections
import contextlib
import random
from collections.abc import Iterator

from tf_packnet.keras_internals import global_state

_NAMES = "object_name_uids"


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Layers that are made while it lasts change neither the names nor the seeds of those made later."""
    names = collections.defaultdict(int, global_state.get_global_attribute(_NAMES, {}))
    seeds = random.getstate()  # Keras draws the seed of an initializer and a Dropout from it
    try:
        yield
    finally:
        random.setstate(seeds)
        global_state.set_global_attribute(_NAMES, names)
