"""Reads and writes `.packnet` files, which store each task of a pack in its own part; see `docs/pack-format.md`.

`read_contents` lists the contents of a file without importing TensorFlow. The modules `saving` and `loading` build the
model and import it.
"""

from tf_packnet.packfile.contents import Contents, read_contents
from tf_packnet.packfile.info import info_of

__all__ = ["Contents", "info_of", "read_contents"]
