"""Every path of a run, in one place."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """What a run leaves in its output directory."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results.json"

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
    def exports(self) -> Path:
        return self.root / "export"

    def export(self, task_number: int) -> Path:
        """SavedModel folder of a task (1-based)."""
        return self.exports / f"task_{task_number}"

    def made_by_a_run(self) -> list[Path]:
        """Everything that a run writes."""
        return [self.results, self.masks, self.tensorboard, self.pack, self.exports]
