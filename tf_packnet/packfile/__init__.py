"""Reads and writes `.packnet` files, in which each task of a pack has a part; see `docs/pack-format.md`.

`read_contents` lists the contents of a file without importing TensorFlow. `saving` and `loading` need the model.
"""

from tf_packnet.packfile.contents import Contents, read_contents
from tf_packnet.packfile.info import info_of

__all__ = ["Contents", "info_of", "read_contents"]
