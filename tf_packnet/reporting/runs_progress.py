"""What a person sees while an experiment goes on: runs done, running, and the time that is left."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunsProgress:
    """Shows the runs of an experiment: bars on a terminal, a line a run in a log.

    Args:
        console: Where to show it; default standard error, so that standard output holds the results alone.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            speed_estimate_period=600,
        )
        self._all = self._progress.add_task("all runs", total=0, said="")
        self._rows: dict[str, TaskID] = {}
        self._asked = self._done = 0
        self._began = time.perf_counter()

    def __enter__(self) -> "RunsProgress":
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def asked(self, epochs: int) -> None:
        """One more run is to be done."""
        self._asked += 1
        total = self._progress.tasks[0].total + epochs
        self._progress.update(self._all, total=total, said=self._count())

    def begun(self, name: str, epochs: int) -> None:
        """A run begins."""
        self._rows[name] = self._progress.add_task(f"  {name}", total=epochs, said="")
        self._progress.update(self._all, said=self._count())

    def advanced(self, name: str, epochs: int) -> None:
        """Epochs of a run are done."""
        self._progress.update(self._rows[name], advance=epochs)
        self._progress.update(self._all, advance=epochs)

    def ended(self, name: str, seconds: float, scores: str, error: str) -> None:
        """A run has ended."""
        self._done += 1
        row = self._progress.tasks[self._progress.task_ids.index(self._rows.pop(name))]
        self._progress.update(self._all, advance=row.total - row.completed, said=self._count())  # what was reused
        self._progress.remove_task(row.id)
        said = f"failed: {error}" if error else scores
        line = f"{self._done}/{self._asked}  {name}  {said}  {seconds:.1f} s{self._left()}"
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def say(self, line: str) -> None:
        """Shows one line."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _count(self) -> str:
        return f"{self._done} of {self._asked} done, {len(self._rows)} running"

    def _left(self) -> str:
        """The time that is left at the pace so far, for those who read a log; a terminal has its bar."""
        everything = self._progress.tasks[0]
        if self._console.is_terminal or not everything.completed or everything.finished:
            return ""
        pace = (time.perf_counter() - self._began) / everything.completed
        minutes, seconds = divmod(round(pace * (everything.total - everything.completed)), 60)
        return f"  (about {minutes}:{seconds:02d} left)"
