"""New examples from files, as a network takes them: images, folders of images, arrays."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.extras import require_extra
from tf_packnet.tasks.own import IMAGES

ARRAYS = (".npy", ".npz")


class Wanted(NamedTuple):
    """What the network takes.

    Attributes:
        shape: Shape of one example; None where any size will do.
        dtype: Dtype of its input.
        scale: Multiplies raw (whole) numbers; None if nobody said.
        white: What a white pixel is in raw examples.
    """

    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None
    white: float


def files_of(inputs: Sequence[str]) -> list[Path]:
    """The files that `inputs` name, those of folders in the order of their names.

    Raises:
        ArgumentError: If there is no such file, or it is of no kind that can be read.
    """
    found: list[Path] = []
    for name in inputs:
        path = Path(os.path.expanduser(name))  # Path's own raises if there is no such user
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGES)
            if not inside:
                raise ArgumentError("input", f"a folder with images ({', '.join(IMAGES)})", name)
            found += inside
        elif not path.is_file():
            raise ArgumentError("input", "a file or folder that is there", name)
        elif path.suffix.lower() not in (*IMAGES, *ARRAYS):
            raise ArgumentError("input", f"images ({', '.join(IMAGES)}), a folder of them, .npz or .npy", name)
        else:
            found.append(path)
    if not found:
        raise ArgumentError("input", "at least one file", list(inputs))
    return found


def read(files: Sequence[Path], wanted: Wanted) -> Iterator[tuple[list[str], np.ndarray]]:
    """Reads examples, file by file.

    Args:
        files: What `files_of` gave.
        wanted: What the network takes.

    Yields:
        What each example is called, its file or its index in the only file, and the examples `(n, *shape)`.

    Raises:
        ArgumentError: If a file cannot be read, or its examples do not fit the network; the error names the file.
    """
    for file in files:
        if file.suffix.lower() in IMAGES:
            yield [str(file)], _image(file, wanted)
        else:
            x = _fitting(file, _array(file), wanted)
            yield [str(i) if len(files) == 1 else f"{file}[{i}]" for i in range(len(x))], x


def _array(file: Path) -> np.ndarray:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = list(loaded)
            if "x" not in names and len(names) != 1:
                raise ArgumentError("input", f"an array named x in {file} (it has {', '.join(names) or 'none'})", file)
            return loaded["x" if "x" in names else names[0]]
    except ArgumentError:
        raise
    except Exception as error:  # NumPy raises what it likes at a damaged file
        raise ArgumentError("input", "a file of arrays that can be read", str(file)) from error


def _fitting(file: Path, x: np.ndarray, wanted: Wanted) -> np.ndarray:
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.issubdtype(x.dtype, np.complexfloating):
        raise ArgumentError("input", f"numbers in {file}", f"{x.dtype} array")
    shape = wanted.shape
    if shape and shape[-1] == 1 and _fits(x.shape[-len(shape) + 1 :], shape[:-1]) and not _fits(x.shape[1:], shape):
        x = x[..., np.newaxis]  # grey images without their one channel
    if _fits(x.shape, shape):
        x = x[np.newaxis]
    if not _fits(x.shape[1:], shape) or x.ndim != len(shape) + 1:
        expected = f"examples of shape {_shown(shape)} in {file}"
        raise ArgumentError("input", expected, f"an array of shape {x.shape}")
    if not len(x):
        raise ArgumentError("input", f"at least one example in {file}", f"an array of shape {x.shape}")
    takes_fractions = wanted.dtype.startswith(("float", "bfloat"))
    if not np.issubdtype(x.dtype, np.floating):
        return _scaled(file, x, wanted.scale) if takes_fractions else x.astype(wanted.dtype)
    if not takes_fractions:
        expected = f"whole numbers in {file}: the network takes {wanted.dtype}"
        raise ArgumentError("input", expected, f"{x.dtype} array")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if len(broken):
        raise ArgumentError("input", f"finite float32 numbers in {file}", f"none such in example {broken[0]}")
    return x


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(found) == len(shape) and all(want in (None, size) for size, want in zip(found, shape, strict=True))


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ("," * (len(shape) == 1)) + ")"


def _scaled(file: Path, x: np.ndarray, scale: float | None) -> np.ndarray:
    """As `tf_packnet.tasks.Split.x` has it."""
    if scale is None:
        how = "what to multiply them by, which this pack does not record (1/255 for most images)"
        raise ArgumentError("scale", f"given: {file} holds whole numbers. Say {how}", None)
    return x.astype(np.float32) * np.float32(scale)


def _image(file: Path, wanted: Wanted) -> np.ndarray:
    require_extra("Reading images", "PIL")
    from PIL import Image

    shape = wanted.shape if len(wanted.shape) == 3 else (*wanted.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, None):
        expected = f"arrays: the network takes examples of shape {_shown(wanted.shape)}, which are no images"
        raise ArgumentError("input", expected, str(file))
    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if shape[2] == 1 else "RGB")
    except Exception as error:  # whatever Pillow's decoders raise, too large an image among it
        raise ArgumentError("input", "an image that can be read", str(file)) from error
    size = (shape[1] or image.width, shape[0] or image.height)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    x = np.asarray(image, np.uint8).reshape(1, *(n or m for n, m in zip(shape, (size[1], size[0], 3), strict=True)))
    x = x.reshape(1, *x.shape[1 : 1 + len(wanted.shape)])
    scale = wanted.scale if wanted.scale is None or wanted.white == 255 else wanted.scale * wanted.white / 255
    return _scaled(file, x, scale)
