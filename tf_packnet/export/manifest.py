"""The manifest of a SavedModel: checksums of its files, and facts for servers that TensorFlow does not store.

It is in `assets.extra`, TensorFlow's folder for files of other programs. `saved_model.pb` marks that there is a
manifest, so that a folder that is still being copied is not mistaken for one without.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_packnet.errors import PackFileError
from tf_packnet.export.endpoint import Endpoint
from tf_packnet.structure.output_values import class_axis_of, returns_probabilities
from tf_packnet.system import files

PATH = "assets.extra/tf_packnet.json"
# The value of `meta_graph_version`, a free-text field of TensorFlow, in SavedModels with a manifest.
MARK = "tf_packnet"


def write(folder: Path, endpoints: Mapping[str, Endpoint]) -> None:
    """Write the manifest of a complete SavedModel folder.

    Args:
        folder: The folder.
        endpoints: The models in it, by name of their signature.
    """
    manifest = {
        "format": 1,
        "signatures": {name: _facts(endpoint) for name, endpoint in endpoints.items()},
        "files": {name: files.sha256(folder / name) for name in _files(folder)},
    }
    (folder / PATH).parent.mkdir(exist_ok=True)
    files.write_json(folder / PATH, manifest)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Check the files of a SavedModel folder against its manifest.

    Returns:
        The facts about each signature, in the order of the tasks; empty without a manifest, as in SavedModels of other
        programs.

    Raises:
        PackFileError: If the manifest or a file is damaged or missing.
    """
    if not (folder / PATH).exists():
        return {}
    try:
        manifest = files.read_json(folder / PATH)
        for name, checksum in manifest["files"].items():
            if files.sha256(folder / name) != checksum:
                raise PackFileError(folder, name, "is damaged")
        return {str(name): dict(facts) for name, facts in manifest["signatures"].items()}
    except OSError as error:
        raise PackFileError(folder, Path(error.filename or PATH).name, f"cannot be read ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, PackFileError):
            raise
        raise PackFileError(folder, PATH, "is damaged") from error


def _facts(endpoint: Endpoint) -> dict[str, Any]:
    """Return the scales of raw inputs and, for a model with a single output, its class axis and kind."""
    facts: dict[str, Any] = {"scales": endpoint.scales}
    if len(endpoint.output_names) == 1:
        facts["class_axis"] = class_axis_of(endpoint.model)
        facts["probabilities"] = returns_probabilities(endpoint.model)
    return facts


def _files(folder: Path) -> list[str]:
    paths = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sorted(os.path.relpath(path, folder) for path in paths)
