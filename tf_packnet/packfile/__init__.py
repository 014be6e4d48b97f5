"""A pack as one file: every task in it, each in a part of its own. `docs/pack-format.md` has the format.

`read_contents` says what is in a file without starting TensorFlow; `saving` and `loading` know the model.
"""

from tf_packnet.packfile.contents import Contents, read_contents
from tf_packnet.packfile.info import info_of

__all__ = ["Contents", "info_of", "read_contents"]
