"""Loads the embedded digits, or any image classification data set of TensorFlow Datasets (TFDS)."""

import contextlib
import difflib
import io
import math
import os
import socket
import sys
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.system.extras import require_extra
from tf_packnet.system.table_files import TABLES
from tf_packnet.tasks.batches import untuned
from tf_packnet.tasks.labelled import Labelled, Reading
from tf_packnet.tasks.stored_images import are_too_large
from tf_packnet.tasks.stream import Split
from tf_packnet.tasks.tfds_images import has_record_files, stored_split

EMBEDDED = "digits"
_AS_STORED = Reading()
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


# Functions that load the data sets of the library itself, by name of the data set.
SOURCES: dict[str, Callable[[], tuple[Split, Split, list[str]]]] = {EMBEDDED: load_digits}


def load_tfds(name: str, data_dir: str | None = None, reading: Reading = _AS_STORED) -> Labelled:
    """Load an image classification data set with TFDS, which downloads it if it is not on disk.

    The test examples are those of the split `test`, or of `validation` if there is no `test` or it has no labels.

    Args:
        name: Name in TFDS.
        data_dir: TFDS's data directory; the default is TFDS's own default.
        reading: How images are read.

    Returns:
        The data set.

    Raises:
        ArgumentError: If TFDS does not know the data set, if it is not an image classification data set with a training
            split, if its images differ in size and `reading` has no `image_size`, or if it is not on disk and cannot be
            downloaded.
    """
    require_extra("A data set of TFDS", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    check_name(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # for an unknown version or config TFDS raises various types
        raise ArgumentError("dataset", f"a data set that TFDS can build ({first_line(error)})", name) from error
    _check_is_image_classification(name, builder.info, reading)
    _prepare(name, builder)
    training, candidates = _splits(name, builder)
    is_stored = reading.image_size is not None or _stays_on_disk(builder, (training, *candidates), reading)
    file_bytes = 0
    found: list[Split] = []
    for split in (training, *candidates):
        examples, size = stored_split(name, builder, split, reading) if is_stored else (_read(builder, split), 0)
        if split == training or (examples.labels >= 0).any():
            found.append(examples)
            file_bytes += size
        if len(found) == 2:
            break
    class_names = list(builder.info.features["label"].names)
    return Labelled(name, found[0], found[1] if len(found) > 1 else None, class_names, file_bytes=file_bytes)


def _splits(name: str, builder: Any) -> tuple[str, list[str]]:
    """Return the name of the training split, and those of possible test splits in order of preference."""
    splits = list(builder.info.splits) or ["train", "test"]  # unknown: there are no files
    if "train" not in splits and len(splits) > 1:
        expected = f"a data set with a split of training examples, `train` (this one has: {', '.join(splits)})"
        raise ArgumentError("dataset", expected, name)
    training = "train" if "train" in splits else splits[0]
    return training, [split for split in ("test", "validation") if split in splits and split != training]


def _stays_on_disk(builder: Any, splits: Sequence[str], reading: Reading) -> bool:
    """Whether images that need no resizing stay on disk."""
    if reading.on_disk is not None:
        return reading.on_disk
    feature = builder.info.features["image"]
    examples = sum(builder.info.splits[split].num_examples for split in splits if split in builder.info.splits)
    return are_too_large(examples * math.prod(feature.shape) * np.dtype(feature.np_dtype).itemsize)


def is_folder(name: str) -> bool:
    """Whether `name` is the path of a folder or table: it starts with `.`, `/` or `~`, or has a slash and exists."""
    is_table = name.lower().endswith(TABLES) and os.path.isfile(name)
    return name.startswith((".", "/", "~")) or is_table or (os.sep in name and os.path.isdir(name))


def names_in(dataset: str) -> tuple[str, ...]:
    """Return the names of data sets in a comma-separated list. The name of an existing folder may contain commas."""
    parts = dataset.split(",")
    names: list[str] = []
    while parts:
        ends = range(len(parts), 1, -1)
        joined = (",".join(parts[:end]) for end in ends)
        folders = (end for end, name in zip(ends, joined, strict=True) if _exists(name))
        end = next(folders, 1)
        names.append(",".join(parts[:end]))
        parts = parts[end:]
    return tuple(names)


def _exists(name: str) -> bool:
    path = os.path.expanduser(name)
    return is_folder(name) and (os.path.isdir(path) or os.path.isfile(path))


def check_name(name: str, data_dir: str | None = None) -> None:
    """Check the name of a data set, or a comma-separated list of names, without starting TensorFlow.

    Raises:
        ArgumentError: If a name is not in `SOURCES`, not a folder or table, and not known to TFDS, or if a name is
            repeated.
    """
    names = names_in(name)
    if len(set(names)) < len(names):
        raise ArgumentError("dataset", "different data sets", name)
    for each in names:
        _check_one_name(each, data_dir)


def _check_one_name(name: str, data_dir: str | None) -> None:
    if name in SOURCES:
        return
    if is_folder(name):
        path = os.path.expanduser(name)
        if os.path.isfile(path) and not name.lower().endswith(TABLES):
            raise ArgumentError("dataset", f"a folder, or a table ({', '.join(TABLES)})", name)
        if not os.path.exists(path):
            raise ArgumentError(
                "dataset", "an existing folder, with one folder per task or per class, or a table", name
            )
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


def _check_is_image_classification(name: str, info: Any, reading: Reading) -> None:
    features = info.features
    if not {"image", "label"} <= set(features or {}) or not hasattr(features["label"], "names"):
        raise ArgumentError("dataset", "an image classification data set, with the features image and label", name)
    if None in features["image"].shape and reading.image_size is None:
        raise ArgumentError("image_size", f"a size such as 224, as the images of {name} differ in size", None)


def _prepare(name: str, builder: Any) -> None:
    if _can_be_read(builder):
        return
    if not is_online():  # TFDS would retry for minutes
        raise _unavailable(name, builder, f"{_HOST} cannot be reached")
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # TFDS prints to standard output. Its progress bars need a stream that accepts control characters.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(sys.__stderr__):
            builder.download_and_prepare()
    except Exception as error:  # from TFDS's downloader, file system or checksums
        raise _unavailable(name, builder, first_line(error)) from error


def _can_be_read(builder: Any) -> bool:
    if builder.is_prepared():
        return True
    try:
        builder.as_dataset(split="train")  # such as TFDS's mock data, which have no files
    except Exception:
        return False
    return True


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
    # TFDS's own batch of all examples ends the process if their number is unknown, as that of mock data.
    batches = list(builder.as_dataset(split=split, shuffle_files=False).batch(_RECORDS_PER_CALL).as_numpy_iterator())
    if not batches:
        raise ArgumentError("dataset", f"at least one example in the split {split}", builder.name)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in ("image", "label")}


def _is_one_record_file(builder: Any, split: str) -> bool:
    """Whether the examples are in one record file. TFDS interleaves several files in an order of its own."""
    return has_record_files(builder, split) and len(builder.info.splits[split].filepaths) == 1


def _read_records(builder: Any, split: str) -> dict[str, np.ndarray]:
    """Do the same as `_read_examples` in a quarter of the time, by parsing many examples per call."""
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
