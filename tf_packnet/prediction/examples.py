"""Reads examples for prediction from images, folders of images and NumPy files."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.extras import require_extra
from tf_packnet.tasks.own_data import IMAGES

ARRAYS = (".npy", ".npz")


class InputSpec(NamedTuple):
    """The input of the network.

    Attributes:
        shape: Shape of one example; None for axes of any length.
        dtype: Dtype of the input.
        scale: Factor for integer examples; None if unknown.
        white: Value of a white pixel in integer examples.
    """

    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None
    white: float


def files_of(inputs: Sequence[str]) -> list[Path]:
    """List the files that `inputs` name. A folder stands for its images, sorted by name.

    Raises:
        ArgumentError: If a file does not exist, or its type is not supported.
    """
    files: list[Path] = []
    for name in inputs:
        path = Path(os.path.expanduser(name))  # Path.expanduser raises an error for an unknown user
        if path.is_dir():
            images = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGES)
            if not images:
                raise ArgumentError("input", f"a folder with images ({', '.join(IMAGES)})", name)
            files += images
        elif not path.is_file():
            raise ArgumentError("input", "an existing file or folder", name)
        elif path.suffix.lower() not in (*IMAGES, *ARRAYS):
            raise ArgumentError("input", f"images ({', '.join(IMAGES)}), a folder of them, .npz or .npy", name)
        else:
            files.append(path)
    if not files:
        raise ArgumentError("input", "at least one file", list(inputs))
    return files


def read(files: Sequence[Path], spec: InputSpec) -> Iterator[tuple[list[str], np.ndarray]]:
    """Read examples, file by file.

    Args:
        files: The return value of `files_of`.
        spec: The input of the network.

    Yields:
        The name of each example (its file, or its index in the only file), and the examples `(n, *shape)`.

    Raises:
        ArgumentError: If a file cannot be read, or its examples do not fit the network. The message names the file.
    """
    for file in files:
        if file.suffix.lower() in IMAGES:
            yield [str(file)], _image(file, spec)
        else:
            x = _to_input(file, _array(file), spec)
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
    except Exception as error:  # NumPy raises errors of many types for a damaged file
        raise ArgumentError("input", "a NumPy file that can be read", str(file)) from error


def _to_input(file: Path, x: np.ndarray, spec: InputSpec) -> np.ndarray:
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.issubdtype(x.dtype, np.complexfloating):
        raise ArgumentError("input", f"numbers in {file}", f"{x.dtype} array")
    shape = spec.shape
    if shape and shape[-1] == 1 and _fits(x.shape[-len(shape) + 1 :], shape[:-1]) and not _fits(x.shape[1:], shape):
        x = x[..., np.newaxis]  # grey images without a channel axis
    if _fits(x.shape, shape):
        x = x[np.newaxis]
    if not _fits(x.shape[1:], shape) or x.ndim != len(shape) + 1:
        expected = f"examples of shape {_shown(shape)} in {file}"
        raise ArgumentError("input", expected, f"an array of shape {x.shape}")
    if not len(x):
        raise ArgumentError("input", f"at least one example in {file}", f"an array of shape {x.shape}")
    takes_floats = spec.dtype.startswith(("float", "bfloat"))
    if not np.issubdtype(x.dtype, np.floating):
        return _scaled(file, x, spec.scale) if takes_floats else x.astype(spec.dtype)
    if not takes_floats:
        expected = f"integers in {file}, because the network takes {spec.dtype}"
        raise ArgumentError("input", expected, f"{x.dtype} array")
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


def _scaled(file: Path, x: np.ndarray, scale: float | None) -> np.ndarray:
    """Scale integers as `tf_packnet.tasks.Split.x` does."""
    if scale is None:
        expected = f"a factor for the integers in {file}, such as 1/255, because the pack does not record one"
        raise ArgumentError("scale", expected, None)
    return x.astype(np.float32) * np.float32(scale)


def _image(file: Path, spec: InputSpec) -> np.ndarray:
    require_extra("Reading images", "PIL")
    from PIL import Image

    shape = spec.shape if len(spec.shape) == 3 else (*spec.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, None):
        expected = f"arrays: the network takes examples of shape {_shown(spec.shape)}, which are not images"
        raise ArgumentError("input", expected, str(file))
    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if shape[2] == 1 else "RGB")
    except Exception as error:  # Pillow raises errors of many types, also for images that are too large
        raise ArgumentError("input", "an image that can be read", str(file)) from error
    size = (shape[1] or image.width, shape[0] or image.height)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    x = np.asarray(image, np.uint8).reshape(1, *(n or m for n, m in zip(shape, (size[1], size[0], 3), strict=True)))
    x = x.reshape(1, *x.shape[1 : 1 + len(spec.shape)])
    scale = spec.scale if spec.scale is None or spec.white == 255 else spec.scale * spec.white / 255
    return _scaled(file, x, scale)
