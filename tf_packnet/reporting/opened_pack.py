"""A pack as it lies on disk, opened to be looked at."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tf_packnet.errors import ArgumentError
from tf_packnet.packed_model import PackedModel


@dataclass(frozen=True)
class PackFile:
    """What is known of the file, beside the model in it.

    Attributes:
        name: Its name, without folders.
        bytes: Its size.
        task_bytes: What each task takes of it, by name; None where the tasks do not lie apart.
        results: The content of the `results.json` of the run that wrote it; None without one.
        note: What is wrong with that file, if anything is.
    """

    name: str
    bytes: int
    task_bytes: dict[str, int] | None = None
    results: dict[str, Any] | None = None
    note: str = ""


def open_pack(path: Path, results: Path | None = None) -> tuple[PackedModel, PackFile]:
    """Reads a pack, without what only training needs.

    Args:
        path: A `.keras` file that a pack was saved to.
        results: The `results.json` that belongs to it, which may be missing.

    Raises:
        ArgumentError: If it is no pack, or none that can be read; the message says why.
    """
    if not zipfile.is_zipfile(path):
        raise ArgumentError("pack", "a pack, as packed.save('pack.keras') writes it", str(path))
    packed = _read_keras(path)
    found, note = (None, "") if results is None else _read_results(results)
    return packed, PackFile(path.name, path.stat().st_size, None, found, note)


def _read_keras(path: Path) -> PackedModel:
    try:
        # Keras goes by the suffix, whatever is in the file.
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises all kinds
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise ArgumentError("pack", f"a pack that can be read ({reason[:300]})", str(path)) from error
    if not isinstance(model, PackedModel):
        raise ArgumentError("pack", f"a pack, not a {type(model).__name__} that was not packed", str(path))
    return model


def _read_results(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError):
        return None, f"{path.name} beside it cannot be read"
    if not isinstance(values, dict):
        return None, f"{path.name} beside it is not that of a run"
    return values, ""
