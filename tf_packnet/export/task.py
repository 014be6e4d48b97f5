"""Exports one task, or a plain Keras model, to a file or folder."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import keras

from tf_packnet import lifecycle
from tf_packnet.arguments import checked
from tf_packnet.errors import ArgumentError
from tf_packnet.export import onnx_file, saved_model, tflite
from tf_packnet.export.compaction import compact_model
from tf_packnet.export.dense import dense_model, strip_pruning
from tf_packnet.export.endpoint import ClassNames, Endpoint, Preprocessing
from tf_packnet.export.paths import check_path, chosen_format
from tf_packnet.packed_model import PackedModel
from tf_packnet.structure.graphs import checked_copy
from tf_packnet.structure.layer_paths import is_graph
from tf_packnet.system import files
from tf_packnet.tasks.encodings import Encoding

_TABLE = "table.json"


@checked
def export_task(
    packed: PackedModel,
    task: int | str,
    path: str | os.PathLike,
    *,
    format: str | None = None,
    compact: bool = False,
    preprocessing: Preprocessing = None,
    class_names: ClassNames = None,
    calibration: Any = None,
    batch_size: int | None = None,
    encoding: Encoding | None = None,
) -> None:
    """Write one committed task to a file or folder that can be used without this library.

    Every format takes the same inputs, in batches of any size, and returns the same `float32` outputs.
    `tf.saved_model.load(path).serve(x)` returns the task's logits. The file is written atomically.

    Args:
        packed: The pack.
        task: Name or number (1-based) of a committed task.
        path: The file or folder to write. An existing one of this format is replaced.
        format: `saved_model` (a folder for TensorFlow and TensorFlow Serving), `keras` (a file for
            `keras.models.load_model`), a file for LiteRT: `tflite`, `tflite_float16` (half the size) or `tflite_int8`
            (a quarter of the size); or `onnx`. Default: by the suffix of `path`, `.keras`, `.tflite` or `.onnx`;
            without one of these, `saved_model`.
        compact: Whether to leave out units and weights that the task does not use. A compact `.keras` file may store
            kernels without their zeros; loading it needs `import tf_packnet` first.
        preprocessing: None if examples are passed to the network unchanged; `uint8` if they are raw bytes, to be
            multiplied by 1/255; or a number to multiply raw bytes by, such as the `scale` of a `tp.tasks.Split`. A
            mapping by input name if the network has several inputs.
        class_names: One name per unit of the head, stored in the file. A SavedModel returns them from `class_names()`;
            `.keras` and LiteRT files are ZIP archives that contain `class_names.txt`; ONNX files have them in their
            metadata, as `class_names`. A mapping by output name if the network has several outputs.
        calibration: A few hundred examples for `tflite_int8`, on which the ranges of values are measured: an array
            `(examples, *shape)` in the form that the exported file takes, or a mapping by input name.
        batch_size: For LiteRT and ONNX: the fixed number of examples per call. LiteRT needs it for recurrent
            layers.
        encoding: How tables become inputs, `task.encoding` of a `tp.tasks.Task`, stored as JSON for the caller of the
            model: in `assets.extra/table.json` of a SavedModel, in `table.json` of a `.keras` or LiteRT file, not in
            an ONNX file.

    Raises:
        ArgumentError: If the task or format does not exist, the path is unsuitable, or an option does not fit the task.
            Nothing is written in this case.
        RuntimeError: If the task is still open.
        MissingExtraError: If the format is `onnx` and the extra `onnx` is not installed.
    """
    format = _checked_format(Path(path), format, calibration, batch_size)
    model = dense_model(packed, task)
    if format == "keras" and any("/" in path for path in lifecycle.heads(packed)):
        checked_copy(model)
    options: dict[str, Any] = {"preprocessing": preprocessing, "class_names": class_names, "calibration": calibration}
    options["encoding"] = encoding
    export_model(model, path, format=format, compact=compact, batch_size=batch_size, **options)


@checked
def export_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    format: str | None = None,
    compact: bool = False,
    preprocessing: Preprocessing = None,
    class_names: ClassNames = None,
    calibration: Any = None,
    batch_size: int | None = None,
    encoding: Encoding | None = None,
) -> None:
    """Write a Keras model, plain or from `tp.sparsify`, to a file or folder that can be used without this library.

    Args:
        model: A built Sequential or functional model. A sparsified model is first converted with `tp.strip_pruning`.
        path: As for `export_task`, like all other arguments.
        format: The format.
        compact: Whether to leave out units and weights that are 0.
        preprocessing: How raw bytes are converted.
        class_names: Names of the outputs.
        calibration: Examples for `tflite_int8`.
        batch_size: The fixed number of examples per call.
        encoding: How tables become inputs.

    Raises:
        ArgumentError: If an option is invalid. Nothing is written in this case.
        MissingExtraError: If the format is `onnx` and the extra `onnx` is not installed.
    """
    path = Path(path)
    format = _checked_format(path, format, calibration, batch_size)
    if isinstance(model, PackedModel):
        model = strip_pruning(model)
    if not isinstance(model, keras.Model) or not model.built or not is_graph(model):
        raise ArgumentError("model", "a built Sequential or functional model", type(model).__name__)
    endpoint = Endpoint(model, preprocessing, class_names, batch_size)
    if calibration is not None:
        calibration = tflite.check_calibration(endpoint, calibration)
    if compact:
        # LiteRT has its own sparse format; ONNX has none that runtimes read.
        endpoint = endpoint.with_model(compact_model(endpoint.model, sparse=format in ("saved_model", "keras")))
    with files.replacing(path) as temporary:
        if format == "saved_model":
            if encoding is not None:  # first: the manifest of the folder contains its checksum
                (temporary / "assets.extra").mkdir(parents=True)
                (temporary / "assets.extra" / _TABLE).write_text(_as_text(encoding), encoding="utf-8")
            saved_model.write(endpoint, temporary)
        elif format == "onnx":
            onnx_file.write(endpoint, temporary)
        elif format == "keras":
            endpoint.raw_model().save(temporary)
            _add_metadata(endpoint, encoding, temporary)
        else:
            tflite.write(endpoint, temporary, format, calibration, sparse=compact)
            _add_metadata(endpoint, encoding, temporary)


def _checked_format(path: Path, format: str | None, calibration: Any, batch_size: int | None) -> str:
    """Return the format, after checking the arguments that do not depend on the model."""
    format = chosen_format(path, format)
    check_path(path, format)
    if (calibration is not None) != (format == "tflite_int8"):
        expected = "a few hundred examples" if calibration is None else "None, because only tflite_int8 is calibrated"
        raise ArgumentError("calibration", f"{expected} (format={format!r})", _shape(calibration))
    if batch_size is not None:
        if format in ("saved_model", "keras"):
            expected = f"None, because this format takes any number of examples (format={format!r})"
            raise ArgumentError("batch_size", expected, batch_size)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError("batch_size", "a whole number, at least 1, or None", batch_size)
    if format == "onnx":
        onnx_file.check_installed()
    return format


def _as_text(encoding: Encoding) -> str:
    return json.dumps(encoding.to_json(), ensure_ascii=False) + "\n"


def _add_metadata(endpoint: Endpoint, encoding: Encoding | None, path: Path) -> None:
    """Append text files in a ZIP archive, as TFLite metadata does; readers of the model ignore it."""
    several = len(endpoint.output_names) > 1
    texts = {
        f"class_names_{name}.txt" if several else "class_names.txt": "".join(f"{each}\n" for each in names)
        for name, names in endpoint.class_names.items()
    }
    if encoding is not None:
        texts[_TABLE] = _as_text(encoding)
    if texts:
        with zipfile.ZipFile(path, "a") as archive:
            for member, text in texts.items():
                archive.writestr(zipfile.ZipInfo(member), text)


def _shape(calibration: Any) -> Any:
    return getattr(calibration, "shape", calibration)
