"""Finds the encoded images of a TFDS data set, so that they can be resized, or stay on disk until they are needed."""

import io
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.system.extras import require_extra
from tf_packnet.system.images import read_image
from tf_packnet.system.limits import IMAGE_RATIO, Bound
from tf_packnet.tasks.batches import untuned
from tf_packnet.tasks.labelled import Reading
from tf_packnet.tasks.stored_images import StoredImages
from tf_packnet.tasks.stream import Split

# TFRecord format: the length of the record and its checksum come before the record, a checksum of the record after it.
_HEADER, _FOOTER = struct.Struct("<Q4x"), 4


def stored_split(name: str, builder: Any, split: str, reading: Reading) -> tuple[Split, int]:
    """Find the images of a split, without decoding them.

    Args:
        name: Name of the data set, for errors.
        builder: TFDS's builder of the data set, which is on disk.
        split: Name of the split.
        reading: How images are read. Without `image_size`, TFDS decodes them.

    Returns:
        The examples, and the size in bytes of their encoded images.

    Raises:
        ArgumentError: If images are to be resized whose pixels are not 8 or 16 bit integers.
    """
    feature = builder.info.features["image"]
    channels = 1 if feature.shape[-1] == 1 else 3 if reading.image_size is not None else feature.shape[-1]
    if reading.image_size is not None and feature.np_dtype not in (np.uint8, np.uint16):
        raise ArgumentError("image_size", f"None for the images of {name}", f"images of {feature.np_dtype}")
    encoded, labels, total = (_in_files if has_record_files(builder, split) else _in_memory)(builder, split)
    if reading.image_size is None:
        decode, shape, dtype = _as_tfds_does(feature), feature.shape, np.dtype(feature.np_dtype)
    else:
        bound = Bound(reading.max_bytes, total, IMAGE_RATIO)
        decode, shape = _resizing(name, reading, channels, bound), (*reading.image_size, channels)
        dtype = np.dtype(np.uint8)
    images = StoredImages(lambda position: decode(encoded(position)), np.arange(len(labels)), shape, dtype)
    return Split(images, labels, 1 / 255 if dtype == np.uint8 else 1.0), total


def _resizing(name: str, reading: Reading, channels: int, bound: Bound) -> Callable[[bytes], np.ndarray]:
    height, width = reading.image_size or (None, None)
    mode = "L" if channels == 1 else "RGB"

    def decode(encoded: bytes) -> np.ndarray:
        try:
            return read_image(encoded, mode, height, width, bound, reading.resize)
        except Exception as error:  # Pillow raises errors of many types
            raise ArgumentError("dataset", f"images that can be read ({first_line(error)})", name) from error

    return decode


def _as_tfds_does(feature: Any) -> Callable[[bytes], np.ndarray]:
    return lambda encoded: feature.decode_example(encoded).numpy()


def has_record_files(builder: Any, split: str) -> bool:
    """Whether the examples are in TFRecord files that exist."""
    require_extra("A data set of TFDS", "tensorflow_datasets")
    import tensorflow_datasets as tfds

    if builder.info.file_format != tfds.core.FileFormat.TFRECORD or split not in builder.info.splits:
        return False
    return all(os.path.isfile(path) for path in builder.info.splits[split].filepaths)


Encoded = tuple[Callable[[int], bytes], np.ndarray, int]


def _in_files(builder: Any, split: str) -> Encoded:
    """Return a function that reads an encoded image from the record files, the labels, and the size of all images."""
    files = [os.fspath(path) for path in builder.info.splits[split].filepaths]
    found = [_scan(file) for file in files]
    numbers = np.repeat(np.arange(len(files)), [len(labels) for _, labels, _ in found])
    spans = np.concatenate([spans for spans, _, _ in found])
    labels = np.concatenate([labels for _, labels, _ in found])
    if len(files) > 1:  # in TFDS's order, which interleaves files
        starts = {os.path.basename(file): int(np.searchsorted(numbers, i)) for i, file in enumerate(files)}
        order = np.array([starts[file] + int(row) for file, row in _ids(builder, split)])
        numbers, spans, labels = numbers[order], spans[order], labels[order]

    def encoded(position: int) -> bytes:
        start, length = spans[position].tolist()
        with open(files[numbers[position]], "rb") as file:
            file.seek(start)
            return _parsed(file.read(length))[0]

    return encoded, labels, sum(total for _, _, total in found)


def _scan(file: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the offset and length of each record of a file, the labels, and the total size of the encoded images."""
    spans, labels, total = [], [], 0
    with open(file, "rb", buffering=2**20) as records:
        while header := records.read(_HEADER.size):
            (length,) = _HEADER.unpack(header)
            spans.append((records.tell(), length))
            image, label = _parsed(records.read(length))
            labels.append(label)
            total += len(image)
            records.seek(_FOOTER, io.SEEK_CUR)
    return np.array(spans, np.int64).reshape(-1, 2), np.array(labels, np.int64), total


def _parsed(record: bytes) -> tuple[bytes, int]:
    from tensorflow.core.example.example_pb2 import Example

    features = Example.FromString(record).features.feature
    return features["image"].bytes_list.value[0], features["label"].int64_list.value[0]


def _ids(builder: Any, split: str) -> Sequence[tuple[str, str]]:
    """Return the file name of each example and its position in the file, in TFDS's order."""
    return [example["tfds_id"].decode().rsplit("__", 1) for example in _examples(builder, split, with_ids=True)]


def _in_memory(builder: Any, split: str) -> Encoded:
    """Do the same as `_in_files` for other file formats, whose encoded images are kept in memory."""
    examples = list(_examples(builder, split))
    images = [example["image"] for example in examples]
    labels = np.array([example["label"] for example in examples], np.int64)
    return images.__getitem__, labels, sum(map(len, images))


def _examples(builder: Any, split: str, with_ids: bool = False) -> Any:
    """Iterate over the examples in TFDS's order, without decoding the images."""
    import tensorflow_datasets as tfds

    wanted = {"label": True} if with_ids else {"image": True, "label": True}
    skipped = {} if with_ids else {"image": tfds.decode.SkipDecoding()}
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding(wanted, decoders=skipped),
        read_config=tfds.ReadConfig(add_tfds_id=with_ids),
    )
    return untuned(dataset).as_numpy_iterator()
