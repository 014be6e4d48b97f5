"""Checks the path that an export is written to."""

from pathlib import Path

from tf_packnet.errors import ArgumentError, check_choice

# File name suffix of each format. A SavedModel is a folder, without a suffix.
SUFFIXES = {
    "saved_model": "",
    "keras": ".keras",
    "tflite": ".tflite",
    "tflite_float16": ".tflite",
    "tflite_int8": ".tflite",
    "onnx": ".onnx",
}
_BY_SUFFIX = {".keras": "keras", ".tflite": "tflite", ".onnx": "onnx"}


def chosen_format(path: Path, format: str | None) -> str:
    """Return the format of an export: `format`, or if that is None, the one for the suffix of `path`.

    Raises:
        ArgumentError: If there is no such format.
    """
    if format is None:
        return _BY_SUFFIX.get(path.suffix, "saved_model")
    check_choice("format", format, tuple(SUFFIXES))
    return format


def check_path(path: Path, format: str) -> None:
    """Check that an export of this format can be written to `path`, which must be new or an earlier export.

    Raises:
        ArgumentError: If the suffix is wrong, or something else exists at `path`.
    """
    suffix = SUFFIXES[format]
    if suffix and path.suffix != suffix:
        raise ArgumentError("path", f"a name that ends with {suffix} (format={format!r})", str(path))
    if suffix and path.is_dir():
        raise ArgumentError("path", f"a file (format={format!r}); this is a folder", str(path))
    if not suffix and path.exists() and not path.is_dir():
        raise ArgumentError("path", f"a folder (format={format!r}); this is a file", str(path))
    # The whole folder is replaced, so it must not hold other files.
    if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists():
        raise ArgumentError("path", "a new folder, an empty one, or a SavedModel to replace", str(path))
