"""Checks the weights and assets in a `.keras` file: an HDF5 file may claim far more data than it stores."""

import math
import os

import h5py

from tf_packnet.system import archives
from tf_packnet.system.archives import InvalidFileError
from tf_packnet.system.limits import Bound

_WEIGHTS = "model.weights.h5"
_ASSETS = "assets/"
# NumPy's kinds of the allowed dtypes. V: dtypes that NumPy does not have, such as bfloat16.
_KINDS = "biufV"
# Limits on the numbers of HDF5 objects and of archive members: a network has a few of them for each layer.
_MAX_OBJECTS, _MAX_ASSETS = 100_000, 10_000
# Memory in bytes for each line of an asset (an entry of a vocabulary), and for each of its bytes.
_LINE_BYTES, _ASSET_BYTES = 256, 4


def check(path: str | os.PathLike, bound: Bound) -> None:
    """Check that the file itself stores all numbers that its weights claim, and that assets are small.

    Raises:
        InvalidFileError: If the weights claim more than they store, or are not stored as Keras does.
        SizeError: If the members of the file, or the entries of its assets, take too much memory.
        Exception: Any error of zipfile and h5py, if the file is damaged.
    """
    with archives.opened_zip(path, bound) as archive:
        assets = [name for name in archive.namelist() if name.startswith(_ASSETS)]
        if len(archive.namelist()) > _MAX_ASSETS:
            raise InvalidFileError(f"it has {len(archive.namelist()):,} members")
        content = [archives.read_member(archive, name).getvalue() for name in assets]
        needed = sum(_LINE_BYTES * text.count(b"\n") + _ASSET_BYTES * len(text) for text in content)
        bound.check(needed, "its vocabularies")
        weights = archives.read_member(archive, _WEIGHTS)
    with h5py.File(weights, "r") as file:
        _check_group(file, weights.getbuffer().nbytes)


def _check_group(file: h5py.File, size: int) -> None:
    """Check the objects of an HDF5 file of `size` bytes."""
    seen: set[int] = set()
    stored, waiting = 0, [file["/"]]
    while waiting:
        group = waiting.pop()
        if len(group) + len(seen) > _MAX_OBJECTS:
            raise InvalidFileError(f"{_WEIGHTS} has more than {_MAX_OBJECTS:,} objects")
        for name in group:
            where = f"{_WEIGHTS}{group.name.rstrip('/')}/{name}"[:200]
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InvalidFileError(f"{where} is a link")
            part = group[name]
            address = h5py.h5o.get_info(part.id).addr
            if address in seen:
                raise InvalidFileError(f"{where} is the same object as another one")
            seen.add(address)
            if isinstance(part, h5py.Group):
                waiting.append(part)
            elif isinstance(part, h5py.Dataset):
                stored += _stored_bytes(part, where)
            if stored > size:
                raise InvalidFileError(f"{_WEIGHTS} claims more numbers than it has bytes for")


def _stored_bytes(dataset: h5py.Dataset, where: str) -> int:
    claimed = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    if dataset.dtype.kind not in _KINDS or dataset.dtype.fields is not None:
        raise InvalidFileError(f"{where} has the dtype {str(dataset.dtype)[:100]}")
    if dataset.chunks is not None or dataset.external or dataset.is_virtual:
        raise InvalidFileError(f"{where} is not stored as Keras does")
    if claimed > dataset.id.get_storage_size():
        raise InvalidFileError(f"{where} claims {claimed:,} bytes but stores {dataset.id.get_storage_size():,}")
    if "dtype" in dataset.attrs and dataset.attrs.get_id("dtype").get_storage_size() > 64:
        raise InvalidFileError(f"{where} has a large attribute")
    return claimed
