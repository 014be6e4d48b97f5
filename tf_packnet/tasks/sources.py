"""Where the examples come from: the embedded digits, or any image classification set of TensorFlow Datasets."""

import contextlib
import difflib
import io
import os
import socket
import sys
import urllib.request

import numpy as np

from tf_packnet.errors import ArgumentError
from tf_packnet.system.extras import require_extra
from tf_packnet.tasks.batches import untuned
from tf_packnet.tasks.stream import Split

EMBEDDED = "digits"


def load_digits() -> tuple[Split, Split, list[str]]:
    """scikit-learn's 1,797 handwritten digits, 8x8, in the package: no network. One in five is for testing."""
    require_extra("The embedded data set `digits`", "sklearn")
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    data = sklearn_digits()
    images = data.images.astype(np.uint8)[..., np.newaxis]  # grey values 0..16
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=data.target, random_state=0)
    everything = Split(images, data.target, scale=1 / 16)
    return everything.take(np.sort(train)), everything.take(np.sort(test)), [str(i) for i in range(10)]


def load_tfds(name: str, data_dir: str | None = None) -> tuple[Split, Split, list[str]]:
    """An image classification set of TFDS, downloaded by TFDS if it is not on disk.

    Raises:
        ArgumentError: If TFDS has no such set, it is no image classification set, or it is neither on disk nor to be
            had from the network.
    """
    require_extra("A data set of TFDS", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    check_name(name, data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # a version or config that does not exist: TFDS raises what it likes
        raise ArgumentError("dataset", f"a data set that TFDS can build ({_first_line(error)})", name) from error
    _check_is_image_classification(name, builder.info)
    _prepare(name, builder)
    for wanted in ("train", "test"):
        if wanted not in builder.info.splits:
            have = ", ".join(builder.info.splits)
            raise ArgumentError("dataset", f"a data set with the splits train and test (this one has: {have})", name)
    train, test = (_read(builder, split) for split in ("train", "test"))
    return train, test, list(builder.info.features["label"].names)


def is_folder(name: str) -> bool:
    """Whether `name` is meant as a folder of one's own: a path with a slash that TFDS cannot mean, or one that is."""
    return name.startswith((".", "/", "~")) or (os.sep in name and os.path.isdir(name))


def check_name(name: str, data_dir: str | None = None) -> None:
    """Raises ArgumentError unless `name` is embedded, a folder or known to TFDS. Does not start TensorFlow."""
    if name == EMBEDDED:
        return
    if is_folder(name):
        if not os.path.isdir(os.path.expanduser(name)):
            raise ArgumentError("dataset", "a folder that is there, with a folder a task in it", name)
        return
    require_extra("A data set of TFDS", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = name.split(":")[0].split("/")[0]
    on_disk = data_dir is not None and os.path.isdir(os.path.join(os.path.expanduser(data_dir), base))
    if base not in known and not on_disk:
        near = difflib.get_close_matches(base, [EMBEDDED, *known], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ArgumentError("dataset", f"{EMBEDDED}, or the name of a TFDS image classification set{hint}", name)


def _check_is_image_classification(name, info) -> None:
    features = info.features
    if not {"image", "label"} <= set(features or {}) or not hasattr(features["label"], "names"):
        raise ArgumentError("dataset", "an image classification set, with the features image and label", name)
    if None in features["image"].shape:
        raise ArgumentError(
            "dataset", f"images of one fixed size (these have the shape {features['image'].shape})", name
        )


def _prepare(name, builder) -> None:
    if builder.is_prepared():
        return
    if not is_online():  # TFDS would try again and again, for minutes
        raise _unavailable(name, builder, f"{_HOST} cannot be reached")
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks there, where only results belong
            builder.download_and_prepare()
    except Exception as error:  # TFDS lets through whatever its downloader, file system or checksums raise
        raise _unavailable(name, builder, _first_line(error)) from error


# Where TFDS keeps data sets that are prepared already, and the original MNIST.
_HOST = "storage.googleapis.com"


def is_online(timeout: float = 5.0) -> bool:
    """Whether TFDS's host answers within `timeout` seconds; behind a proxy, that is taken for granted."""
    if urllib.request.getproxies():
        return True
    try:
        socket.create_connection((_HOST, 443), timeout).close()
    except OSError:
        return False
    return True


def _unavailable(name: str, builder, reason: str) -> ArgumentError:
    command = f'python -c "import tensorflow_datasets as tfds; tfds.load({name!r})"'
    return ArgumentError(
        "dataset",
        f"a data set on disk in {os.fspath(builder.data_path)} or a network to download it from ({reason}); where "
        f"there is a network run: {command} and copy the folder, or point --data_dir at it",
        name,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _read(builder, split: str) -> Split:
    read = _read_records if _is_one_record_file(builder, split) else _read_examples
    data = read(builder, split)
    images = data["image"]
    return Split(images, data["label"], scale=1 / 255 if images.dtype == np.uint8 else 1.0)


def _read_examples(builder, split: str) -> dict[str, np.ndarray]:
    import tensorflow_datasets as tfds

    return tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, shuffle_files=False))


def _is_one_record_file(builder, split: str) -> bool:
    """Whether the examples lie one after another: those of several files TFDS mixes in an order of its own."""
    import tensorflow_datasets as tfds

    return builder.info.file_format == tfds.core.FileFormat.TFRECORD and len(builder.info.splits[split].filepaths) == 1


def _read_records(builder, split: str) -> dict[str, np.ndarray]:
    """The same as `_read_examples`, many examples a call: that takes a quarter of the time."""
    import tensorflow as tf

    features = builder.info.features
    wanted = {name: tf.TensorSpec(features[name].shape, features[name].tf_dtype) for name in ("image", "label")}

    def example(record):
        values = features.deserialize_example(record)
        return {name: values[name] for name in wanted}

    @tf.autograph.experimental.do_not_convert  # see batches.py
    def examples(records):
        return tf.map_fn(example, records, fn_output_signature=wanted, parallel_iterations=1)

    records = tf.data.TFRecordDataset([os.fspath(path) for path in builder.info.splits[split].filepaths])
    calls = records.batch(RECORDS_A_CALL).map(examples, num_parallel_calls=len(os.sched_getaffinity(0)))
    parts = list(untuned(calls).as_numpy_iterator())
    return {name: np.concatenate([part[name] for part in parts]) for name in wanted}


RECORDS_A_CALL = 500
