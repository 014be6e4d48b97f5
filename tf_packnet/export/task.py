"""One task as a file of the wanted format."""

import os
import zipfile
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError, check_choice
from tf_packnet.export import saved_model, tflite
from tf_packnet.export.compaction import compact_model
from tf_packnet.export.dense import dense_model
from tf_packnet.export.endpoint import ClassNames, Endpoint, Preprocessing
from tf_packnet.export.paths import SUFFIXES, check_path
from tf_packnet.packed_model import PackedModel
from tf_packnet.system import files


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
) -> None:
    """Writes one committed task as a file or folder that needs nothing of this library, atomically.

    Whatever the format, it takes the same inputs, any number of examples at a time, and gives the same `float32`
    outputs. `tf.saved_model.load(path).serve(x)` gives the task's logits.

    Args:
        packed: The pack.
        task: Name or number (1-based) of a committed task.
        path: The file or folder to write; one of this format that is there is replaced.
        format: `saved_model`, a folder for TensorFlow alone and for TensorFlow Serving; `keras`, a file for
            `keras.models.load_model`; or `tflite`, `tflite_float16` (half the size), `tflite_int8` (a quarter), a file
            for LiteRT.
        compact: Whether to leave out units and weights that the task does not use. A `.keras` file with kernels that
            are stored without their zeros needs this library: `import tf_packnet` before `keras.models.load_model`.
        preprocessing: None: inputs are what the network takes. `uint8`: they are raw bytes, which the file multiplies
            by 1/255; or a number to multiply raw bytes by, such as the `scale` of a `tp.tasks.Split`. With several
            inputs, by the name of the input.
        class_names: A name for every unit of the head, which the file answers: `class_names()` of a SavedModel, else
            `class_names.txt` in the file, which is a ZIP archive too. With several outputs, by the name of the output.
        calibration: For `tflite_int8`, some hundred examples, as the file takes them: an array `(examples, *shape)`;
            with several inputs, by name. The ranges that the numbers of the network lie in are taken from them.

    Raises:
        ArgumentError: If there is no such task or format, the path is no place for it, or the options do not fit the
            task. Nothing is written then.
        RuntimeError: If the task is still being learned.
    """
    check_choice("format", format, tuple(SUFFIXES))
    path = Path(path)
    check_path(path, format)
    if (calibration is not None) != (format == "tflite_int8"):
        expected = "some hundred examples" if calibration is None else "None: only tflite_int8 is calibrated"
        raise ArgumentError("calibration", f"{expected} (format={format!r})", _shape(calibration))
    endpoint = Endpoint(dense_model(packed, task), preprocessing, class_names)
    if calibration is not None:
        calibration = tflite.checked(endpoint, calibration)
    if compact:
        # LiteRT has no kernels that are made of their entries when the file is loaded.
        endpoint = endpoint.of(compact_model(endpoint.model, sparse=SUFFIXES[format] != ".tflite"))
    with files.replacing(path) as temporary:
        if format == "saved_model":
            saved_model.write(endpoint, temporary)
            return
        if format == "keras":
            endpoint.raw_model().save(temporary)
        else:
            tflite.write(endpoint, temporary, format, calibration)
        _add_class_names(endpoint, temporary)


def _add_class_names(endpoint: Endpoint, path: Path) -> None:
    """The way of TFLite's metadata: a file in an archive at the end, which the reader of the model passes over."""
    if not endpoint.class_names:
        return
    several = len(endpoint.output_names) > 1
    with zipfile.ZipFile(path, "a") as archive:
        for name, names in endpoint.class_names.items():
            member = f"class_names_{name}.txt" if several else "class_names.txt"
            archive.writestr(zipfile.ZipInfo(member), "".join(f"{each}\n" for each in names))


def _shape(calibration: Any) -> Any:
    return getattr(calibration, "shape", calibration)
