"""Loads the tasks of a run, and checks that stored results were computed from the same data."""

import functools
import sys
import warnings
from pathlib import Path
from typing import Any

from tf_packnet import tasks
from tf_packnet.errors import ArgumentError
from tf_packnet.runs.config import Config
from tf_packnet.tasks import TaskStream
from tf_packnet.tasks.sources import SOURCES, is_folder, names_in


def load_stream(config: Config) -> TaskStream:
    """Load the tasks of a config. Warnings about the data are printed, one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        stream = _load_config(config)
    for warning in caught:
        print(warning.message, file=sys.stderr)
    return stream


def _load_config(config: Config) -> TaskStream:
    return _load(
        config.dataset,
        config.classes_per_task,
        config.num_tasks,
        config.data_dir,
        config.validation_fraction,
        config.batch_size,
        config.seed,
        config.max_bytes,
        image_size=config.pixels(),
        resize=config.resize,
        test_fraction=config.test_fraction,
        on_disk=_ON_DISK[config.data_residency],
        scenario=config.scenario,
        class_order=config.class_order,
        task_order=config.task_order,
        columns=config.columns(),
    )


# Whether images stay on disk, by `data_residency`; None decides by their size.
_ON_DISK = {"auto": None, "device": False, "stream": False, "disk": True}


# Cached, since most runs in one process learn the same tasks.
_load = functools.lru_cache(maxsize=2)(tasks.load)


def check_unchanged(results: dict[str, Any], config: Config, root: Path) -> None:
    """Read the data of `config` again and compare it with the data from which `results` were computed.

    Prints a line if the data can no longer be read. For processes that train nothing: if reading the data needs
    TensorFlow, it starts without GPUs.

    Args:
        results: The content of a `results.json`.
        config: The run.
        root: The directory of the results.

    Raises:
        ArgumentError: If the data has changed.
    """
    recorded = results.get("data_fingerprint")
    if recorded is None:  # results of an earlier version
        return
    try:
        current = _current_fingerprint(config)
    except ArgumentError as error:
        print(f"cannot check whether --dataset={config.dataset} has changed: {error}", file=sys.stderr)
        return
    if current != recorded:
        expected = (
            f"a new folder (the data of --dataset={config.dataset} has changed since the results there were computed)"
        )
        raise ArgumentError("output_dir", expected, str(root))


def _current_fingerprint(config: Config) -> str:
    if not all(name in SOURCES or is_folder(name) for name in names_in(config.dataset)):
        from tf_packnet.system.quiet import start_tensorflow

        start_tensorflow(on_cpu=True)
    _load.cache_clear()  # read from disk, not from the cache
    return load_stream(config).fingerprint()
