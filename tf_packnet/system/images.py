"""Reads images from untrusted sources. What decoding takes is computed from the header and bounded before it begins."""

import os
from typing import TYPE_CHECKING

import numpy as np

from tf_packnet.system.extras import require_extra
from tf_packnet.system.limits import Bound, open_regular

if TYPE_CHECKING:
    from PIL import Image

# Suffixes of image files, and Pillow's names of their formats: it would open many others by their content.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF")
# Bytes per pixel of Pillow's modes; 4 for all others.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
# Marks a scan of a JPEG file. A progressive one has about ten, each of which costs a pass over all pixels.
_SCAN = b"\xff\xda"


def read_image(
    path: str | os.PathLike, mode: str | None, height: int | None, width: int | None, bound: Bound
) -> np.ndarray:
    """Read an image, of an animation the first one.

    Args:
        path: The file.
        mode: `L` for grey, `RGB` for colours; None for that of the image.
        height: The height to resize to; None for that of the image.
        width: The width to resize to; None for that of the image.
        bound: The memory that reading it may take.

    Returns:
        The pixels, `(height, width)` or `(height, width, 3)`, `uint8`.

    Raises:
        SizeError: If decoding and resizing would take more than `bound`.
        Exception: Pillow raises errors of many types for a damaged file.
    """
    require_extra("Reading images", "PIL")
    from PIL import Image

    with open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
        mode = mode or ("L" if image.mode in ("1", "L", "I;16") else "RGB")
        size = (width or image.width, height or image.height)
        bound.check(_needed(image, mode, size), f"the image of {image.width:,} x {image.height:,} pixels")
        if image.format in ("JPEG", "MPO"):
            scans = _scans(path)
            # One pass over a pixel takes about as long as half a byte may take memory.
            bound.check(scans * image.width * image.height // 2, f"decoding its {scans:,} scans")
        image.load()
        converted = image if image.mode == mode else image.convert(mode)
        resized = converted if converted.size == size else converted.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(resized, np.uint8)


def _needed(image: "Image.Image", mode: str, size: tuple[int, int]) -> int:
    """Memory to decode, convert and resize an image, and for the result."""
    pixels, result = image.width * image.height, size[0] * size[1]
    target = _PIXEL_BYTES.get(mode, 4)
    converted = 0 if image.mode == mode else pixels * target
    resized = 0 if image.size == size else (size[0] * image.height + result) * target
    return pixels * _PIXEL_BYTES.get(image.mode, 4) + converted + resized + result * target


def _scans(path: str | os.PathLike) -> int:
    with open_regular(path) as file:
        count, before = 0, b""
        while chunk := file.read(2**20):
            count += (before + chunk).count(_SCAN)
            before = chunk[-1:]
        return count
