"""Reads images from untrusted sources. The memory for decoding is computed from the header and bounded beforehand."""

import io
import os
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from tf_packnet.system.extras import require_extra
from tf_packnet.system.limits import Bound, open_regular

if TYPE_CHECKING:
    from PIL import Image

# Suffixes of image files, and Pillow's names of their formats. By default, Pillow opens many other formats, too.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
# Suffixes of image files that are not supported.
OTHER_IMAGES = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".pgm", ".ppm", ".pbm", ".svg", ".tga", ".ico", ".dds")
# Bytes per pixel of Pillow's modes; 4 for all others.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "LA": 2}
_GREY = ("1", "L", "LA", "La", "I;16", "I;16B", "I")
_16_BITS = ("I;16", "I;16B", "I")
# Limit on the height and width that images are resized to.
MAX_SIDE = 10_000
# Ways to resize an image: change its aspect ratio, add black borders, or crop it to the centre.
RESIZES = ("stretch", "pad", "crop")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
# Marker of a scan in a JPEG file. A progressive JPEG has about ten scans; each takes a pass over all pixels.
_SCAN = b"\xff\xda"


class UnsupportedImageError(ValueError):
    """An image is of a kind that this library does not read. The message says which."""


class Header(NamedTuple):
    """The header of an image file: whether the image is grey, and its upright height and width in pixels."""

    is_grey: bool
    height: int
    width: int


def read_header(source: str | os.PathLike | bytes) -> Header:
    """Read the header of an image, without decoding the pixels.

    Args:
        source: The path of the file, or its content.

    Raises:
        Exception: Pillow raises errors of many types for a damaged file.
    """
    require_extra("Reading images", "PIL")
    from PIL import Image

    with _opened(source) as file, Image.open(file, formats=_FORMATS) as image:
        # If EXIF follows the pixels of a PNG file, Pillow would decode the pixels to find it. `read_image` finds it.
        may_turn = image.format != "PNG" or "exif" in image.info
        turned = may_turn and image.getexif().get(0x0112) in _TURNED
        width, height = image.size[::-1] if turned else image.size
        return Header(image.mode in _GREY, height, width)


def read_image(
    source: str | os.PathLike | bytes,
    mode: str | None,
    height: int | None,
    width: int | None,
    bound: Bound,
    resize: str = "stretch",
) -> np.ndarray:
    """Read an image as 8-bit grey or RGB pixels.

    The image is rotated upright according to its EXIF orientation. Transparent pixels are blended with white. Values of
    16-bit images are scaled to 8 bits.

    Args:
        source: The path of the file, or its content.
        mode: `L` for grey, `RGB` for colour; None for grey if the image is grey, otherwise RGB.
        height: The height to resize to; None for that of the image.
        width: The width to resize to; None for that of the image.
        bound: Limit on the memory for reading the image.
        resize: One of `RESIZES`.

    Returns:
        The pixels, `(height, width)` or `(height, width, 3)`, `uint8`.

    Raises:
        SizeError: If decoding and resizing would take more than `bound`.
        UnsupportedImageError: If the image is an animation, or its pixels are not 8 or 16 bit integers.
        Exception: Pillow raises errors of many types for a damaged file.
    """
    require_extra("Reading images", "PIL")
    from PIL import Image, ImageOps

    with _opened(source) as file, Image.open(file, formats=_FORMATS) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photograph and its previews
            raise UnsupportedImageError("an animation, or a stack of several images")
        mode = mode or ("L" if image.mode in _GREY else "RGB")
        size = (width or image.width, height or image.height)
        bound.check(_needed(image, mode, size), f"the image of {image.width:,} x {image.height:,} pixels")
        if image.format in ("JPEG", "MPO"):
            scans = _scans(source)
            # Time is bounded with memory: one pass over a pixel counts as half a byte.
            bound.check(scans * image.width * image.height // 2, f"decoding its {scans:,} scans")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        size = (width or image.width, height or image.height)
        return np.asarray(_fitted(_to_mode(image, mode), size, resize), np.uint8)


def resized(pixels: np.ndarray, height: int, width: int, resize: str = "stretch") -> np.ndarray:
    """Resize pixels `(height, width)` or `(height, width, 3)`, `uint8`, as `read_image` does."""
    from PIL import Image

    return np.asarray(_fitted(Image.fromarray(pixels), (width, height), resize), np.uint8)


def _fitted(image: "Image.Image", size: tuple[int, int], resize: str) -> "Image.Image":
    from PIL import Image, ImageOps

    bilinear = Image.Resampling.BILINEAR
    if image.size == size:
        return image
    if resize == "stretch":
        return image.resize(size, bilinear)
    if resize == "crop":
        return ImageOps.fit(image, size, bilinear)
    factor = min(size[0] / image.width, size[1] / image.height)
    inner = [max(1, min(most, round(factor * side))) for side, most in zip(image.size, size, strict=True)]
    padded = Image.new(image.mode, size)
    corner = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    padded.paste(image.resize((inner[0], inner[1]), bilinear), corner)
    return padded


def _opened(source: str | os.PathLike | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)


def _to_mode(image: "Image.Image", mode: str) -> "Image.Image":
    """Convert an image to `L` or `RGB`."""
    from PIL import Image

    if image.mode in _16_BITS:
        pixels = np.asarray(image)
        if pixels.dtype.itemsize > 2 and not (pixels.min() >= 0 and pixels.max() < 2**16):
            raise UnsupportedImageError(f"pixels from {pixels.min()} to {pixels.max()}, of more than 16 bits")
        white = pixels == image.info.get("transparency", -1)
        image = Image.fromarray(np.where(white, 255, np.round(pixels / 257)).astype(np.uint8))
    elif image.mode == "F":
        raise UnsupportedImageError("pixels that are floating-point numbers, of an unknown range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _needed(image: "Image.Image", mode: str, size: tuple[int, int]) -> int:
    """Return the memory in bytes for decoding, converting and resizing an image, and for the result."""
    pixels, result = image.width * image.height, size[0] * size[1]
    target = _PIXEL_BYTES.get(mode, 4)
    converted = 0 if image.mode == mode else pixels * (target if image.mode in ("1", "L", "P", "RGB", "CMYK") else 12)
    resized = 0 if image.size == size else (size[0] * image.height + result) * target
    return pixels * _PIXEL_BYTES.get(image.mode, 4) + converted + resized + result * target


def _scans(source: str | os.PathLike | bytes) -> int:
    with _opened(source) as file:
        count, before = 0, b""
        while chunk := file.read(2**20):
            count += (before + chunk).count(_SCAN)
            before = chunk[-1:]
        return count
