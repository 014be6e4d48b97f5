"""All paths of a run and of an experiment, and the place of their store."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


def expand(name: str) -> Path:
    """Return the path that a user gave, with `~` expanded if that home directory exists."""
    return Path(os.path.expanduser(name))


@dataclass(frozen=True)
class RunPaths:
    """The files in the output directory of a run."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def manifest(self) -> Path:
        """Checksums of the files of a finished run, and the config of the run."""
        return self.root / "checksums.json"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def pack(self) -> Path:
        return self.root / "pack.keras"

    @property
    def pack_file(self) -> Path:
        """The pack file: the pack in one small file, without free weights."""
        return self.root / "pack.packnet"

    @property
    def exports(self) -> Path:
        return self.root / "export"

    def owner_maps(self, task_number: int) -> Path:
        """Owner maps after a task (1-based), as `TaskMaskSnapshot` names them."""
        return self.masks / f"task_{task_number}.npz"

    def export(self, task_number: int) -> Path:
        """SavedModel folder of a task (1-based)."""
        return self.exports / f"task_{task_number}"

    @property
    def stages(self) -> Path:
        """The store of the run's stages, unless it shares another one."""
        return self.root / "stages"

    def rebuildable(self) -> list[Path]:
        """Return files and folders that can be written again from the stored stages, without training."""
        return [self.masks, self.tensorboard, self.pack, self.pack_file, self.exports]

    def is_output(self, path: Path) -> bool:
        """Whether a run writes a file at this path. Only for `rebuildable` files, and files in such folders."""
        return _OUTPUTS.fullmatch(path.relative_to(self.root).as_posix()) is not None

    def is_output_folder(self, path: Path) -> bool:
        """Whether a run creates a folder at this path."""
        return _OUTPUT_FOLDERS.fullmatch(path.relative_to(self.root).as_posix()) is not None

    def is_in_export(self, path: Path) -> bool:
        """Whether `path` is in a SavedModel, a folder that is replaced as a whole."""
        return any(self.exports in parent.parents for parent in path.parents)


_OUTPUTS = re.compile(
    r"masks/task_\d+\.npz|pack\.keras|pack\.packnet|export/report\.json"
    r"|export/task_\d+/(saved_model\.pb|fingerprint\.pb|variables/variables\.[^/]+|assets\.extra/(table|tf_packnet)\.json)"
    r"|tensorboard/([^/]+/)?events\.out\.tfevents\.[^/]+"
)
_OUTPUT_FOLDERS = re.compile(
    r"masks|export|export/task_\d+(/variables|/assets|/assets\.extra)?|tensorboard|tensorboard/(pack|task_\d+_[^/]+)"
)


@dataclass(frozen=True)
class ExperimentPaths:
    """The files in the output directory of an experiment; for figures and report see `reporting.report`."""

    root: Path

    @property
    def experiment(self) -> Path:
        """The identity of the experiment that the directory belongs to."""
        return self.root / "experiment.json"

    @property
    def manifest(self) -> Path:
        """Checksums of the files of the report, and the identity of the experiment."""
        return self.root / "checksums.json"

    @property
    def csv(self) -> Path:
        return self.root / "results.csv"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def stages(self) -> Path:
        """The store of the stages of all runs, unless the experiment shares another one."""
        return self.root / "stages"

    @property
    def runs(self) -> Path:
        """The folder of the results of all runs."""
        return self.root / "runs"

    def run(self, name: str) -> Path:
        """Return the path of the results of a run."""
        return self.runs / f"{name}.json"


class StorePlace(NamedTuple):
    """Where stages and results are stored.

    Attributes:
        folder: The local folder of the store.
        stages: URL at which finished stages are shared; None to share none.
        results: URL or folder in which the results of finished runs are shared; None to share none.
    """

    folder: Path
    stages: str | None = None
    results: str | None = None

    def to_json(self) -> list[str | None]:
        """Return the place as a JSON value."""
        return [str(self.folder), self.stages, self.results]

    @classmethod
    def from_json(cls, value: list[Any]) -> "StorePlace":
        """Inverse of `to_json`."""
        folder, stages, results = value
        return cls(Path(folder), stages, results)
