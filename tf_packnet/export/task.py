"""Exports one task to a file or folder."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from tf_packnet import lifecycle
from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.export import saved_model, tflite
from tf_packnet.export.compaction import compact_model
from tf_packnet.export.dense import dense_model
from tf_packnet.export.endpoint import ClassNames, Endpoint, Preprocessing
from tf_packnet.export.paths import SUFFIXES, check_path
from tf_packnet.packed_model import PackedModel
from tf_packnet.structure.graphs import checked_copy
from tf_packnet.system import files
from tf_packnet.tasks.encodings import Encoding

_TABLE = "table.json"


def export_task(
    packed: PackedModel,
    task: int | str,
    path: str | os.PathLike,
    *,
    format: str = "saved_model",
    compact: bool = False,
    preprocessing: Preprocessing = None,
    class_names: ClassNames = None,
    calibration: Any = None,
    encoding: Encoding | None = None,
) -> None:
    """Write one committed task to a file or folder that is used without this library.

    Every format takes the same inputs, in batches of any size, and returns the same `float32` outputs.
    `tf.saved_model.load(path).serve(x)` returns the task's logits. The file is written atomically.

    Args:
        packed: The pack.
        task: Name or number (1-based) of a committed task.
        path: The file or folder to write. An existing one of this format is replaced.
        format: `saved_model` (a folder for TensorFlow and TensorFlow Serving), `keras` (a file for
            `keras.models.load_model`), or a file for LiteRT: `tflite`, `tflite_float16` (half the size) or
            `tflite_int8` (a quarter of the size).
        compact: Whether to leave out units and weights that the task does not use. A compact `.keras` file may store
            kernels without their zeros; loading it needs `import tf_packnet` first.
        preprocessing: None if the inputs are what the network takes; `uint8` if they are raw bytes, to be multiplied by
            1/255; or a number to multiply raw bytes by, such as the `scale` of a `tp.tasks.Split`. A mapping by input
            name if the network has several inputs.
        class_names: One name per unit of the head, stored in the file. A SavedModel returns them from `class_names()`;
            `.keras` and LiteRT files are ZIP archives that contain `class_names.txt`. A mapping by output name if the
            network has several outputs.
        calibration: A few hundred examples for `tflite_int8`, from which the value ranges are measured: an array
            `(examples, *shape)` as the exported file takes them, or a mapping by input name.
        encoding: How tables become inputs, `task.encoding` of a `tp.tasks.Task`, stored as JSON for the caller of the
            model: in `assets.extra/table.json` of a SavedModel, in `table.json` of the other files.

    Raises:
        ArgumentError: If the task or format does not exist, the path is unsuitable, or an option does not fit the task.
            Nothing is written in this case.
        RuntimeError: If the task is still open.
    """
    check_choice("format", format, tuple(SUFFIXES))
    path = Path(path)
    check_path(path, format)
    if (calibration is not None) != (format == "tflite_int8"):
        expected = "a few hundred examples" if calibration is None else "None, because only tflite_int8 is calibrated"
        raise ArgumentError("calibration", f"{expected} (format={format!r})", _shape(calibration))
    endpoint = Endpoint(dense_model(packed, task), preprocessing, class_names)
    if format == "keras" and any("/" in path for path in lifecycle.heads(packed)):
        checked_copy(endpoint.model)
    if calibration is not None:
        calibration = tflite.check_calibration(endpoint, calibration)
    if compact:
        # LiteRT has its own sparse format.
        endpoint = endpoint.with_model(compact_model(endpoint.model, sparse=SUFFIXES[format] != ".tflite"))
    with files.replacing(path) as temporary:
        if format == "saved_model":
            saved_model.write(endpoint, temporary)
            if encoding is not None:
                (temporary / "assets.extra").mkdir()
                (temporary / "assets.extra" / _TABLE).write_text(_as_text(encoding), encoding="utf-8")
            return
        if format == "keras":
            endpoint.raw_model().save(temporary)
        else:
            tflite.write(endpoint, temporary, format, calibration, sparse=compact)
        _add_class_names(endpoint, temporary)
        if encoding is not None:
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr(zipfile.ZipInfo(_TABLE), _as_text(encoding))


def _as_text(encoding: Encoding) -> str:
    return json.dumps(encoding.to_json(), ensure_ascii=False) + "\n"


def _add_class_names(endpoint: Endpoint, path: Path) -> None:
    """Append `class_names.txt` in a ZIP archive, as TFLite metadata does; readers of the model ignore it."""
    if not endpoint.class_names:
        return
    several = len(endpoint.output_names) > 1
    with zipfile.ZipFile(path, "a") as archive:
        for name, names in endpoint.class_names.items():
            member = f"class_names_{name}.txt" if several else "class_names.txt"
            archive.writestr(zipfile.ZipInfo(member), "".join(f"{class_name}\n" for class_name in names))


def _shape(calibration: Any) -> Any:
    return getattr(calibration, "shape", calibration)
