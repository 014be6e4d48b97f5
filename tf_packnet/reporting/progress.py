"""Progress of one run on standard error: a bar on a terminal; a line per finished stage everywhere."""

import time
from typing import Any

import keras
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tf_packnet.callbacks.time_budget import TIME
from tf_packnet.system.console import Console
from tf_packnet.tasks import Task, TaskStream
from tf_packnet.text import printable


class RunProgress:
    """Shows the progress of a run, stage by stage.

    Args:
        stream: The tasks of the run.
        console: Where to show it; default: standard error, so that standard output contains only the results.
    """

    def __init__(self, stream: TaskStream, console: Console | None = None):
        self._stream = stream
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("epochs "),
            TimeRemainingColumn(),
            TextColumn(" {task.fields[scores]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "RunProgress":
        self._progress.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.__exit__(*exception)

    def stage(self, task: Task, stage: str) -> keras.callbacks.Callback:
        """Return a callback that shows one stage of one task."""
        names = max(len(printable(each.name)) for each in self._stream)
        title = f"task {task.number}/{len(self._stream)}  {printable(task.name):<{names}}  {stage:<13}"
        return _StageProgress(self, title)

    def log(self, line: str) -> None:
        """Show one line."""
        self._console.print(line, soft_wrap=True)

    def finished(self, title: str, scores: str, seconds: float) -> None:
        """Show the line of a finished stage."""
        self._console.print(f"{title}  {scores}  {seconds:5.1f} s", soft_wrap=True)


SCORES = ("loss", "accuracy", "val_accuracy", "sparsity")


class _StageProgress(keras.callbacks.Callback):
    def __init__(self, display: RunProgress, title: str):
        super().__init__()
        self._display, self._title = display, title

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()
        self._row = self._display._progress.add_task(self._title, total=self._total(), scores="")

    def _total(self) -> int | None:
        return None if TIME in self.params else self.params["epochs"]

    def resumed(self, history: dict[str, list[float]]) -> None:
        done = len(history["loss"])
        last = {name: values[-1] for name, values in history.items()}
        self._scores = _scores(last, SCORES)
        self._display._progress.update(self._row, advance=done)
        self._display.log(f"{self._title}  resumes after epoch {done}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._scores = _scores(logs or {}, SCORES)
        brief = _scores(logs or {}, ("val_accuracy", "sparsity"))  # the bar leaves little room in 80 columns
        self._display._progress.update(self._row, advance=1, scores=brief)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._display._progress.remove_task(self._row)
        seconds = time.perf_counter() - self._began
        budget = self.params.get(TIME)
        rounds = f"  rounds of {'+'.join(map(str, budget.round_epochs))} epochs" if budget else ""
        self._display.finished(self._title, self._scores + rounds, seconds)


def _scores(logs: dict[str, float], keys: tuple[str, ...]) -> str:
    return "  ".join(f"{key.replace('val_accuracy', 'validation')} {logs[key]:.4f}" for key in keys if key in logs)
