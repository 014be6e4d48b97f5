"""Loads the embedded digits, or any image classification data set of TensorFlow Datasets (TFDS)."""

import contextlib
import difflib
import io
import os
import socket
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.system.extras import require_extra
from tf_packnet.tasks.batches import untuned
from tf_packnet.tasks.stream import Split

EMBEDDED = "digits"
_RECORDS_PER_CALL = 500


def load_digits() -> tuple[Split, Split, list[str]]:
    """Load scikit-learn's 1,797 handwritten digits of 8x8 pixels, which need no network.

    Returns:
        Training examples, test examples (one in five), and class names.
    """
    require_extra("The embedded data set `digits`", "sklearn")
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    data = sklearn_digits()
    images = data.images.astype(np.uint8)[..., np.newaxis]  # grey values from 0 to 16
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=data.target, random_state=0)
    digits = Split(images, data.target, scale=1 / 16)
    return digits.take(np.sort(train)), digits.take(np.sort(test)), [str(i) for i in range(10)]


# Data sets that the library provides itself, by name: functions like `load_digits`.
SOURCES: dict[str, Callable[[], tuple[Split, Split, list[str]]]] = {EMBEDDED: load_digits}


def load_tfds(name: str, data_dir: str | None = None) -> tuple[Split, Split, list[str]]:
    """Load an image classification data set with TFDS, which downloads it if it is not on disk.

    Args:
        name: Name in TFDS.
        data_dir: TFDS's data directory; the default is TFDS's own default.

    Returns:
        Training examples, test examples, and class names.

    Raises:
        ArgumentError: If TFDS does not know the data set, if it is not an image classification data set with the splits
            train and test, or if it is not on disk and cannot be downloaded.
    """
    require_extra("A data set of TFDS", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    check_name(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # for an unknown version or config TFDS raises various types
        raise ArgumentError("dataset", f"a data set that TFDS can build ({first_line(error)})", name) from error
    _check_is_image_classification(name, builder.info)
    _prepare(name, builder)
    if not {"train", "test"} <= set(builder.info.splits):
        splits = ", ".join(builder.info.splits)
        raise ArgumentError("dataset", f"a data set with the splits train and test (this one has: {splits})", name)
    train, test = (_read(builder, split) for split in ("train", "test"))
    return train, test, list(builder.info.features["label"].names)


def is_folder(name: str) -> bool:
    """Whether `name` is the path of a folder: it starts with `.`, `/` or `~`, or contains a slash and exists."""
    return name.startswith((".", "/", "~")) or (os.sep in name and os.path.isdir(name))


def check_name(name: str, data_dir: str | None = None) -> None:
    """Raise ArgumentError unless `name` is in `SOURCES`, a folder, or known to TFDS; does not start TensorFlow."""
    if name in SOURCES:
        return
    if is_folder(name):
        if not os.path.isdir(os.path.expanduser(name)):
            raise ArgumentError("dataset", "an existing folder, with one folder per task", name)
        return
    require_extra("A data set of TFDS", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = name.split(":")[0].split("/")[0]
    on_disk = data_dir is not None and os.path.isdir(os.path.join(os.path.expanduser(data_dir), base))
    if base not in known and not on_disk:
        near = difflib.get_close_matches(base, [*SOURCES, *known], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        expected = f"{', '.join(SOURCES)}, or the name of a TFDS image classification set{hint}"
        raise ArgumentError("dataset", expected, name)


def _check_is_image_classification(name: str, info: Any) -> None:
    features = info.features
    if not {"image", "label"} <= set(features or {}) or not hasattr(features["label"], "names"):
        raise ArgumentError("dataset", "an image classification data set, with the features image and label", name)
    if None in features["image"].shape:
        raise ArgumentError("dataset", f"images of one size (these have the shape {features['image'].shape})", name)


def _prepare(name: str, builder: Any) -> None:
    if builder.is_prepared():
        return
    if not is_online():  # TFDS would retry for minutes
        raise _unavailable(name, builder, f"{_HOST} cannot be reached")
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # TFDS prints on standard output. Its progress bars need a stream that takes control characters.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(sys.__stderr__):
            builder.download_and_prepare()
    except Exception as error:  # from TFDS's downloader, file system or checksums
        raise _unavailable(name, builder, first_line(error)) from error


# The host of TFDS's prepared data sets, and of the original MNIST.
_HOST = "storage.googleapis.com"


def is_online(timeout: float = 5.0) -> bool:
    """Whether TFDS's host can be reached within `timeout` seconds; behind a proxy this is assumed."""
    if urllib.request.getproxies():
        return True
    try:
        socket.create_connection((_HOST, 443), timeout).close()
    except OSError:
        return False
    return True


def _unavailable(name: str, builder: Any, reason: str) -> ArgumentError:
    command = f'python -c "import tensorflow_datasets as tfds; tfds.load({name!r})"'
    return ArgumentError(
        "dataset",
        f"a data set on disk in {os.fspath(builder.data_path)} or a network to download it ({reason}). Where there is "
        f"a network, run: {command} and copy the folder, or point --data_dir at it",
        name,
    )


def _read(builder: Any, split: str) -> Split:
    read = _read_records if _is_one_record_file(builder, split) else _read_examples
    data = read(builder, split)
    images = data["image"]
    return Split(images, data["label"], scale=1 / 255 if images.dtype == np.uint8 else 1.0)


def _read_examples(builder: Any, split: str) -> dict[str, np.ndarray]:
    import tensorflow_datasets as tfds

    return tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, shuffle_files=False))


def _is_one_record_file(builder: Any, split: str) -> bool:
    """Whether the examples are in one file: TFDS interleaves several in its own order, which we could not reproduce."""
    import tensorflow_datasets as tfds

    return builder.info.file_format == tfds.core.FileFormat.TFRECORD and len(builder.info.splits[split].filepaths) == 1


def _read_records(builder: Any, split: str) -> dict[str, np.ndarray]:
    """Do the same as `_read_examples`, in a quarter of the time, because it parses many examples per call."""
    import tensorflow as tf

    features = builder.info.features
    specs = {name: tf.TensorSpec(features[name].shape, features[name].tf_dtype) for name in ("image", "label")}

    def example(record: tf.Tensor) -> dict[str, tf.Tensor]:
        values = features.deserialize_example(record)
        return {name: values[name] for name in specs}

    @tf.autograph.experimental.do_not_convert  # see batches.py
    def examples(records: tf.Tensor) -> dict[str, tf.Tensor]:
        return tf.map_fn(example, records, fn_output_signature=specs, parallel_iterations=1)

    records = tf.data.TFRecordDataset([os.fspath(path) for path in builder.info.splits[split].filepaths])
    calls = records.batch(_RECORDS_PER_CALL).map(examples, num_parallel_calls=len(os.sched_getaffinity(0)))
    parts = list(untuned(calls).as_numpy_iterator())
    return {name: np.concatenate([part[name] for part in parts]) for name in specs}
