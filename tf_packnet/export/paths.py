"""Where a file of a format may be written."""

from pathlib import Path

from tf_packnet.errors import ArgumentError

# What the name of a file of each format ends in; a SavedModel is a folder.
SUFFIXES = {
    "saved_model": "",
    "keras": ".keras",
    "tflite": ".tflite",
    "tflite_float16": ".tflite",
    "tflite_int8": ".tflite",
}


def check_path(path: Path, format: str) -> None:
    """Raises ArgumentError unless `path` is a good name for a file of this format, and free or one of these."""
    suffix = SUFFIXES[format]
    if suffix and path.suffix != suffix:
        raise ArgumentError("path", f"a name that ends in {suffix} (format={format!r})", str(path))
    if suffix and path.is_dir():
        raise ArgumentError("path", f"a file (format={format!r}); this is a folder", str(path))
    if not suffix and path.exists() and not path.is_dir():
        raise ArgumentError("path", f"a folder (format={format!r}); this is a file", str(path))
    # A folder is replaced as a whole: never one with something else in it.
    if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists():
        raise ArgumentError("path", "a new folder, an empty one, or a SavedModel to replace", str(path))
