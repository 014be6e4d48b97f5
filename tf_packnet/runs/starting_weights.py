"""Loads `--weights=FILE` into a plain network, completely or not at all."""

import contextlib
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import h5py
import keras
import numpy as np

from tf_packnet.errors import ArgumentError, first_line, listed
from tf_packnet.runs import applications
from tf_packnet.runs.config import Config
from tf_packnet.runs.network_files import weights_file
from tf_packnet.runs.network_options import application
from tf_packnet.structure import layer_paths
from tf_packnet.structure.graphs import as_graph
from tf_packnet.structure.output_heads import find_heads
from tf_packnet.system.keras_internals import all_layers

# The weights file within a `.keras` file, and the prefix of the optimizer's state in it.
_WEIGHTS, _OPTIMIZER = "model.weights.h5", "optimizer/"


def load(config: Config, model: keras.Model) -> None:
    """Load the file of `--weights`, if there is one. Heads with other shapes than in the file keep their values.

    Raises:
        ArgumentError: If the file cannot be read, is damaged, or has the weights of another network.
    """
    path = weights_file(config)
    if path is not None:
        with _opened(path, config) as source:
            _load(config, model, source)


def check(config: Config) -> None:
    """Raise ArgumentError if there is a file of `--weights` that has no weights."""
    path = weights_file(config)
    if path is not None:
        with _opened(path, config):
            pass


def _load(config: Config, model: keras.Model, source: h5py.File) -> None:
    parts: list[tuple[keras.Model, list[str]]] = [(model, _heads(config, model))]
    if application(config.model) is not None:
        parts.append((applications.backbone_of(model), []))
    mismatches = []
    for part, heads in parts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.weights.h5"
            part.save_weights(path)
            mismatch = _copy(source, path, heads)
            if mismatch is None:
                part.load_weights(path)
                return
            mismatches.append(mismatch)
    expected = f"the weights of the network of --model={config.model}; {mismatches[0]}"
    raise ArgumentError("weights", expected, config.weights)


@contextlib.contextmanager
def _opened(path: Path, config: Config) -> Iterator[h5py.File]:
    """Open the weights in a file; turn the errors of zipfile and h5py, also within the block, into one line."""
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open(_WEIGHTS) as member:
                content: io.BytesIO | str = io.BytesIO(member.read())
        else:
            content = os.fspath(path)
        with h5py.File(content, "r") as file:
            yield file
    except ArgumentError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        expected = f"a file by Keras's save or save_weights that can be read ({first_line(error)})"
        raise ArgumentError("weights", expected, config.weights) from error


def _heads(config: Config, model: keras.Model) -> list[str]:
    """Return the names of the layers that are heads, or in heads."""
    graph = as_graph(model)
    layers = layer_paths.layers_by_path(graph)
    if config.head_layers:
        asked = {*config.head_layers}
        paths = [path for path, layer in layers.items() if {path, path.rpartition("/")[2], layer.name} & asked]
    else:
        try:
            paths = find_heads(graph)
        except ArgumentError:  # allowed with head='shared'
            paths = []
    return [layer.name for path in paths for layer in all_layers(layers[path])]


def _copy(source: h5py.File, path: Path, heads: Collection[str]) -> str | None:
    """Copy all weights from `source` to the weights file of a network.

    Args:
        source: The file to copy from.
        path: The weights file of the network.
        heads: Names of the layers whose weights stay if they have other shapes in `source`.

    Returns:
        None on success; else a description of the difference. The weights file is then unusable.
    """
    given = _datasets(source)
    with h5py.File(path, "r+") as target:
        own = _datasets(target)
        kept = [
            group for group in {name.rpartition("/")[0] for name in own} if target[group].attrs.get("name") in heads
        ]
        for group in kept:
            members = [name for name in {*own, *given} if name.startswith(f"{group}/")]
            if any(name not in own or name not in given or own[name].shape != given[name].shape for name in members):
                own = {name: value for name, value in own.items() if name not in members}
                given = {name: value for name, value in given.items() if name not in members}
        if own.keys() != given.keys():
            return _describe_missing(sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys()))
        for name in sorted(own):
            if own[name].shape != given[name].shape:
                return f"in it {name} has the shape {given[name].shape}, not {own[name].shape}"
            values = given[name][()]
            if values.dtype.kind in "fc" and not np.isfinite(values).all():
                return f"in it {name} is not finite"
            own[name][...] = values
    return None


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith(_OPTIMIZER):
            found[name] = item

    file.visititems(visit)
    return found


def _describe_missing(missing: Sequence[str], unknown: Sequence[str]) -> str:
    parts = [f"it lacks {listed(missing, 2)}"] * bool(missing)
    parts += [f"the network lacks {listed(unknown, 2)}"] * bool(unknown)
    return ", ".join(parts)
