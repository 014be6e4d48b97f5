"""Progress of an experiment on standard error: runs done, runs in progress, and the time left."""

import time
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tf_packnet.system.console import Console


class ExperimentProgress:
    """Shows the runs of an experiment: bars on a terminal; a line per finished run everywhere.

    Args:
        console: Where to show it; default: standard error, so that standard output contains only the results.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            speed_estimate_period=600,
        )
        self._all = self._progress.add_task("all runs", total=0, text="")
        self._rows: dict[str, TaskID] = {}
        self._submitted = self._done = 0
        self._began = time.perf_counter()

    def __enter__(self) -> "ExperimentProgress":
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def add_run(self, epochs: int) -> None:
        """Add a run that is queued."""
        self._submitted += 1
        total = (self._progress.tasks[0].total or 0) + epochs
        self._progress.update(self._all, total=total, text=self._count())

    def start_run(self, name: str, epochs: int) -> None:
        """Show a run that starts."""
        self._rows[name] = self._progress.add_task(f"  {name}", total=epochs, text="")
        self._progress.update(self._all, text=self._count())

    def advance_run(self, name: str, epochs: int) -> None:
        """Add finished epochs to a run."""
        self._progress.update(self._rows[name], advance=epochs)
        self._progress.update(self._all, advance=epochs)

    def requeue_run(self, name: str) -> None:
        """Show that a run has stopped and is queued again."""
        row = self._progress.tasks[self._progress.task_ids.index(self._rows.pop(name))]
        self._progress.update(self._all, advance=-row.completed, text=self._count())
        self._progress.remove_task(row.id)

    def end_run(self, name: str, seconds: float, scores: str, error: str) -> None:
        """Show the line of a run that has ended."""
        self._done += 1
        row = self._progress.tasks[self._progress.task_ids.index(self._rows.pop(name))]
        self._progress.update(self._all, advance=row.remaining, text=self._count())  # reused epochs
        self._progress.remove_task(row.id)
        result = f"failed: {error}" if error else scores
        self.log(f"{self._done}/{self._submitted}  {name}  {result}  {seconds:.1f} s{self._time_left()}")

    def log(self, line: str) -> None:
        """Show one line."""
        self._console.print(line, soft_wrap=True)

    def _count(self) -> str:
        return f"{self._done} of {self._submitted} done, {len(self._rows)} running"

    def _time_left(self) -> str:
        """Return the estimated time left, for log files; a terminal has the bar."""
        all_runs = self._progress.tasks[0]
        if self._console.is_terminal or not all_runs.completed or all_runs.finished:
            return ""
        seconds_per_epoch = (time.perf_counter() - self._began) / all_runs.completed
        minutes, seconds = divmod(round(seconds_per_epoch * (all_runs.remaining or 0)), 60)
        return f"  (about {minutes}:{seconds:02d} left)"
