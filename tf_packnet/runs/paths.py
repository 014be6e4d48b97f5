"""Every path of a run, in one place."""

import os
from dataclasses import dataclass
from pathlib import Path


def folder(name: str) -> Path:
    """The folder that a user calls so; `~` is at home, and stays what it is where there is no such home."""
    return Path(os.path.expanduser(name))


@dataclass(frozen=True)
class RunPaths:
    """What a run leaves in its output directory."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def manifest(self) -> Path:
        """Checksums of what a finished run left, and whose the folder is."""
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
        """The same as `pack`, in one small file without the weights that nobody owns."""
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
        """The store of the run's stages, unless it is told to share one."""
        return self.root / "stages"

    def made_of_stages(self) -> list[Path]:
        """What a run writes from what its stages left, and can write again."""
        return [self.masks, self.tensorboard, self.pack, self.pack_file, self.exports]


@dataclass(frozen=True)
class ExperimentPaths:
    """What an experiment leaves in its output directory, besides figures and report (see `reporting.report`)."""

    root: Path

    @property
    def experiment(self) -> Path:
        """Says whose directory this is."""
        return self.root / "experiment.json"

    @property
    def manifest(self) -> Path:
        """Checksums of what the report consists of, and whose the folder is."""
        return self.root / "checksums.json"

    @property
    def csv(self) -> Path:
        return self.root / "results.csv"

    @property
    def stages(self) -> Path:
        """The store of the stages, unless it is told to share one."""
        return self.root / "stages"

    def run(self, name: str) -> Path:
        """The results of a run."""
        return self.root / "runs" / f"{name}.json"
