"""The files that a run's network comes from: checked, and identified by their content, without TensorFlow."""

import difflib
import functools
import hashlib
from pathlib import Path
from typing import Any

from tf_packnet.errors import ArgumentError, listed
from tf_packnet.runs.config import Config
from tf_packnet.runs.network_options import IMAGENET, NO_WEIGHTS, own_function
from tf_packnet.runs.paths import expand
from tf_packnet.system import python_files
from tf_packnet.system.limits import open_regular


def weights_file(config: Config) -> Path | None:
    """Return the path of the file that `--weights` names; None if it names none."""
    return None if config.weights in (NO_WEIGHTS, IMAGENET) else expand(config.weights)


def check(config: Config) -> None:
    """Check the files of a config without executing anything.

    Raises:
        ArgumentError: If a file cannot be read, or the file of the model does not define the function.
    """
    function = own_function(config.model)
    if function is not None:
        path = expand(function.file)
        with python_files.reported("model", "a Python file and a function in it", config.model, path):
            tree = python_files.parse(path)
        names = python_files.names_in(tree)
        if names is not None and function.name not in names:
            raise unknown_function(config.model, function.name, python_files.functions_in(tree))
    weights = weights_file(config)
    if weights is not None:
        try:
            open_regular(weights).close()
        except OSError as error:
            expected = f"none, imagenet, or a file that can be read ({error.strerror})"
            raise ArgumentError("weights", expected, config.weights) from error


def unknown_function(model: str, name: str, functions: list[str]) -> ArgumentError:
    """Return the error about a function that its file does not define.

    Args:
        model: The value of `--model`.
        name: The function.
        functions: The functions of the file.
    """
    near = difflib.get_close_matches(name, functions, n=len(functions) or 1, cutoff=0)
    found = f"its functions are {listed(near)}" if near else "it has no functions"
    return ArgumentError("model", f"a function that the file defines ({found})", model)


def fingerprint(config: Config) -> dict[str, str]:
    """Identify the content of the files that a network depends on.

    Returns:
        For a function of the user: its name without the path of the file as `model`, and the hash of its source as
        `model_source`, see `python_files.digest`. For a file of weights: its SHA-256 as `weights`. Empty without files.

    Raises:
        ArgumentError: If a file cannot be read.
    """
    check(config)
    found: dict[str, str] = {}
    function = own_function(config.model)
    if function is not None:
        path = expand(function.file)
        with python_files.reported("model", "a Python file and a function in it", config.model, path):
            found = {"model": f":{function.name}", "model_source": python_files.digest(path, function.name)}
    weights = weights_file(config)
    if weights is not None:
        found["weights"] = _hash(weights)
    return found


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1000)
def first_fingerprint(model: str, weights: str) -> dict[str, str]:
    """Return the fingerprint that the files had when this process first asked for it; see `fingerprint`."""
    return fingerprint(Config(model=model, weights=weights))


def changed_files(config: Config, before: dict[str, Any]) -> list[str]:
    """Return the flags whose files have changed since their fingerprint was `before`."""
    now = fingerprint(config)
    flags = {"model_source": f"--model={config.model}", "weights": f"--weights={config.weights}"}
    return [flag for name, flag in flags.items() if now.get(name) != before.get(name)]


def check_unchanged(results: dict[str, Any], config: Config, root: Path) -> None:
    """Raise ArgumentError if the files of the network have changed since `results` were computed.

    Args:
        results: The content of a `results.json`.
        config: The run.
        root: The directory of the results.
    """
    changed = changed_files(config, results.get("network") or {})  # earlier versions did not record it
    if changed:
        expected = (
            f"a new folder (the file of {' and '.join(changed)} has changed since the results there were computed)"
        )
        raise ArgumentError("output_dir", expected, str(root))
