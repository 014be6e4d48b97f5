"""Reads examples for prediction from images, folders of images, NumPy files and tables."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system import archives, images
from tf_packnet.system.extras import require_extra
from tf_packnet.system.images import IMAGES, RESIZES
from tf_packnet.system.limits import Bound, SizeError
from tf_packnet.system.table_files import TABLES, naming, read_table
from tf_packnet.tasks.encodings import Encoding

ARRAYS = (".npy", ".npz")
# Memory in bytes for the name and the prediction of an example, and for its row in the output.
_PREDICTION_BYTES = 2048
# Number of values that are converted at a time.
_CHUNK_VALUES = 2**22


class InputSpec(NamedTuple):
    """The input of the network.

    Attributes:
        shape: Shape of one example; None for axes of any length.
        dtype: Dtype of the input.
        scale: Factor for integer examples; None if unknown.
        white: Value of a white pixel in integer examples.
        resize: How images are resized to the input, one of `RESIZES`.
        encoding: How tables become examples; None if unknown.
    """

    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None
    white: float
    resize: str = RESIZES[0]
    encoding: Encoding | None = None


def files_of(inputs: Sequence[str], max_bytes: int | None = None) -> list[Path]:
    """List the files that `inputs` name. A folder stands for its images, sorted by name.

    Args:
        inputs: Files and folders.
        max_bytes: Limit in bytes on the memory for the predictions of all files; None for the default.

    Raises:
        ArgumentError: If a file does not exist, its type is not supported, or there are too many.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(os.path.expanduser(name))  # Path.expanduser raises an error for an unknown user
        if path.is_dir():
            images = _images_in(path, max_bytes)
            if not images:
                raise ArgumentError("input", f"a folder with images ({', '.join(IMAGES)})", name)
            files += images
        elif not path.is_file():
            raise ArgumentError("input", "an existing file or folder", name)
        elif path.suffix.lower() not in (*IMAGES, *ARRAYS, *TABLES):
            expected = f"images ({', '.join(IMAGES)}), a folder of them, {', '.join((*TABLES, *ARRAYS))}"
            raise ArgumentError("input", expected, name)
        else:
            files.append(path)
    if not files:
        raise ArgumentError("input", "at least one file", list(inputs))
    return files


def _images_in(folder: Path, max_bytes: int | None) -> list[Path]:
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() in IMAGES:
                names.append(entry.name)
                _check_count(folder, len(names), max_bytes)
    return [folder / name for name in sorted(names)]


def _check_count(file: Path, examples: int, max_bytes: int | None) -> None:
    """Raise ArgumentError if the predictions for `examples` examples would take too much memory."""
    try:
        Bound(max_bytes).check(examples * _PREDICTION_BYTES, f"predictions for {examples:,} examples")
    except SizeError as error:
        raise ArgumentError("input", f"fewer examples ({error})", str(file)) from error


def read(
    files: Sequence[Path], spec: InputSpec, max_bytes: int | None = None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Read examples in chunks.

    Args:
        files: The return value of `files_of`.
        spec: The input of the network.
        max_bytes: Limit in bytes on the memory for one file; None for the default, see `tf_packnet.system.limits`.

    Yields:
        The name of each example (its file, or its index or row in the only file), and the examples `(n, *shape)`.

    Raises:
        ArgumentError: If a file cannot be read, or its examples do not fit the network. The message names the file.
    """
    count = 0
    for file in files:
        if file.suffix.lower() in IMAGES:
            yield [str(file)], read_image(file, str(file), spec, Bound.of_file(file, max_bytes))
            continue
        is_table = file.suffix.lower() in TABLES
        x = _checked(file, _encoded(file, spec, max_bytes) if is_table else _array(file, max_bytes), spec)
        count += len(x)
        _check_count(file, count, max_bytes)
        rows = max(1, _CHUNK_VALUES // max(1, math.prod(x.shape[1:])))
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            part = part.astype(spec.dtype) if is_table else _to_input(file, part, spec)
            numbers = range(start + is_table, start + is_table + len(part))  # rows are counted from 1
            yield [str(i) if len(files) == 1 else f"{file}[{i}]" for i in numbers], part


def _encoded(file: Path, spec: InputSpec, max_bytes: int | None) -> np.ndarray:
    if spec.encoding is None:
        expected = "images or arrays, because the pack does not record how tables become examples"
        raise ArgumentError("input", expected, str(file))
    with naming("input"):
        table = read_table(file, max_bytes)
        return spec.encoding.encode(table)


def _array(file: Path, max_bytes: int | None) -> np.ndarray:
    try:
        return archives.read_array(file, "x", Bound.of_file(file, max_bytes))
    except SizeError as error:
        raise ArgumentError("input", f"a smaller file ({error})", str(file)) from error
    except archives.InvalidFileError as error:
        raise ArgumentError("input", f"an array named x in a NumPy file ({error})", str(file)) from error
    except archives.BROKEN as error:
        raise ArgumentError("input", "a NumPy file that can be read", str(file)) from error


def _checked(file: Path, x: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Return `x` as a batch of examples in the shape of the network's input."""
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.issubdtype(x.dtype, np.complexfloating):
        raise ArgumentError("input", f"numbers in {file}", f"{str(x.dtype)[:100]} array")
    shape = spec.shape
    if shape and shape[-1] == 1 and _fits(x.shape[-len(shape) + 1 :], shape[:-1]) and not _fits(x.shape[1:], shape):
        x = x[..., np.newaxis]  # grey images without a channel axis
    if _fits(x.shape, shape):
        x = x[np.newaxis]
    if not _fits(x.shape[1:], shape) or x.ndim != len(shape) + 1:
        expected = f"examples of shape {_shown(shape)} in {file}"
        raise ArgumentError("input", expected, f"an array of shape {x.shape}")
    if not x.size:
        raise ArgumentError("input", f"at least one example in {file}", f"an array of shape {x.shape}")
    takes_floats = spec.dtype.startswith(("float", "bfloat"))
    if np.issubdtype(x.dtype, np.floating) and not takes_floats:
        expected = f"integers in {file}, because the network takes {spec.dtype}"
        raise ArgumentError("input", expected, f"{x.dtype} array")
    return x


def _to_input(file: Path, x: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Convert examples to the dtype of the network's input."""
    if not np.issubdtype(x.dtype, np.floating):
        takes_floats = spec.dtype.startswith(("float", "bfloat"))
        return _scaled(file, x, spec.scale) if takes_floats else x.astype(spec.dtype)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if len(broken):
        raise ArgumentError(
            "input", f"finite float32 numbers in {file}", f"NaN, infinity or an overflow in example {broken[0]}"
        )
    return x


def _fits(actual: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(actual) == len(shape) and all(
        expected in (None, size) for size, expected in zip(actual, shape, strict=True)
    )


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ("," * (len(shape) == 1)) + ")"


def _scaled(file: Path | str, x: np.ndarray, scale: float | None) -> np.ndarray:
    """Scale integers as `tf_packnet.tasks.Split.x` does."""
    if scale is None:
        expected = f"a factor for the integers in {file}, such as 1/255, because the pack does not record one"
        raise ArgumentError("scale", expected, None)
    return x.astype(np.float32) * np.float32(scale)


def read_image(source: Path | bytes, name: str, spec: InputSpec, bound: Bound) -> np.ndarray:
    """Read an image as a batch of one example.

    Args:
        source: The file, or its content.
        name: The name of the image in error messages.
        spec: The input of the network.
        bound: Limit on the memory for reading it.

    Raises:
        ArgumentError: If the image cannot be read, or the network does not take images.
    """
    require_extra("Reading images", "PIL")
    shape = spec.shape if len(spec.shape) == 3 else (*spec.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, None):
        expected = f"arrays: the network takes examples of shape {_shown(spec.shape)}, which are not images"
        raise ArgumentError("input", expected, name)
    mode = "L" if shape[2] == 1 else "RGB"
    try:
        image = images.read_image(source, mode, shape[0], shape[1], bound, spec.resize)
    except SizeError as error:
        raise ArgumentError("input", f"a smaller image ({error})", name) from error
    except images.UnsupportedImageError as error:
        raise ArgumentError("input", f"a single image of 8 or 16 bits ({error})", name) from error
    except Exception as error:  # Pillow raises errors of many types
        raise ArgumentError("input", "an image that can be read", name) from error
    x = image.reshape(1, *image.shape[:2], *((-1,) if len(spec.shape) == 3 else ()))
    scale = spec.scale if spec.scale is None or spec.white == 255 else spec.scale * spec.white / 255
    return _scaled(name, x, scale)
