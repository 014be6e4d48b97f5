"""The tasks of a run, and whether they are still those that results were made of: a folder is easily changed."""

import functools
import sys
from pathlib import Path
from typing import Any

from tf_packnet import tasks
from tf_packnet.errors import ArgumentError
from tf_packnet.runs.config import Config
from tf_packnet.tasks import TaskStream
from tf_packnet.tasks.sources import EMBEDDED, is_folder


def load_stream(config: Config) -> TaskStream:
    """The tasks of a config."""
    return _load(
        config.dataset,
        config.classes_per_task,
        config.num_tasks,
        config.data_dir,
        config.validation_fraction,
        config.batch_size,
        config.seed,
    )


# The runs of one process mostly learn the same tasks.
_load = functools.lru_cache(maxsize=2)(tasks.load)


def check_unchanged(results: dict[str, Any], config: Config, root: Path) -> None:
    """Reads the data of `config` again, and compares them with those that `results` were made of.

    Only where nothing is trained in this process: TensorFlow, if it has to be started, is kept off the GPUs.

    Args:
        results: The content of a `results.json`.
        config: The run.
        root: Where the results lie.

    Raises:
        ArgumentError: If the data have changed. If they are not there any more, a line says so.
    """
    recorded = results.get("data_fingerprint")
    if recorded is None:  # the results of an earlier version
        return
    try:
        found = _fingerprint(config)
    except ArgumentError as error:
        print(f"--dataset={config.dataset} cannot be compared with what was learned: {error}", file=sys.stderr)
        return
    if found != recorded:
        expected = (
            f"a new folder (the data of --dataset={config.dataset} have changed since the results there were made)"
        )
        raise ArgumentError("output_dir", expected, str(root))


def _fingerprint(config: Config) -> str:
    if config.dataset != EMBEDDED and not is_folder(config.dataset):
        from tf_packnet.system.quiet import start_tensorflow

        start_tensorflow(on_cpu=True)
    _load.cache_clear()  # as they are now
    return load_stream(config).fingerprint()
