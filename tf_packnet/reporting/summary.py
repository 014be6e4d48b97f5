"""The table at the end of a run."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tf_packnet.pruning import ownership
from tf_packnet.reporting import exports


def count_weights(owner_maps: dict[str, np.ndarray], num_tasks: int) -> dict[str, Any]:
    """How many prunable weights there are, and how many each task owns: per task, and per task and layer."""
    owned = {path: ownership.count_by_owner(owner)[1 : num_tasks + 1].tolist() for path, owner in owner_maps.items()}
    return {
        "prunable": sum(owner.size for owner in owner_maps.values()),
        "owned": [sum(counts) for counts in zip(*owned.values(), strict=True)],
        "owned_by_layer": owned,
    }


def free_fraction(owner_maps: dict[str, np.ndarray]) -> dict[str, Any]:
    """Share of the prunable weights that no task owns: `{"overall": float, "layers": {path: float}}`."""
    free = {path: int(np.count_nonzero(owner == 0)) for path, owner in owner_maps.items()}
    sizes = {path: owner.size for path, owner in owner_maps.items()}
    layers = {path: free[path] / sizes[path] for path in free}
    return {"overall": sum(free.values()) / sum(sizes.values()), "layers": layers}


def print_results(results: dict[str, Any], output_dir: Path, console: Console | None = None) -> None:
    """Prints the table of a finished run and where its files lie.

    Args:
        results: The content of `results.json`.
        output_dir: Where the run wrote.
        console: Where to print; default standard output.
    """
    (console or Console()).print(render(results, output_dir))


def render(results: dict[str, Any], output_dir: Path) -> RenderableType:
    """See `print_results`."""
    free = results["free_fraction"]
    layers = "  ".join(f"{path.removesuffix('/kernel')} {share:.1%}" for path, share in free["layers"].items())
    lines = [
        f"Free weights  {free['overall']:.2%}  ({layers})",
        f"Results       {output_dir / 'results.json'}",
    ]
    if results["config"]["approach"] == "packnet":
        lines.append(f"Pack          {output_dir / 'pack.packnet'}")
    if results["config"]["export"] and results["config"]["approach"] == "packnet":
        lines.append(f"SavedModels   {output_dir / 'export'}/task_1 .. task_{len(results['tasks'])}")
    lines.append(f"TensorBoard   {_tensorboard()} --logdir {output_dir / 'tensorboard'}")
    compacted = exports.written(output_dir / "export/report.json")
    above = [exports.render(compacted)] if compacted else []
    return Group(*above, _table(results), Text("\n".join(lines) + "\n"))


def _tensorboard() -> str:
    """How to call the TensorBoard that is installed with this Python."""
    ours = Path(sys.executable).parent / "tensorboard"
    found = shutil.which("tensorboard")
    if not ours.exists() or (found and Path(found) == ours):
        return "tensorboard"
    return str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)


def _table(results: dict[str, Any]) -> Table:
    config = results["config"]
    table = Table(
        title=f"{config['dataset']}: {config['approach']}, p = {config['final_prune']:g}, N = {config['prune_rounds']}",
        caption=f"seed {config['seed']}, test accuracy",
    )
    for heading in ("task", "classes"):
        table.add_column(heading)
    for heading in ("when learned", "at the end", "own weights", "share"):
        table.add_column(heading, justify="right")
    final, weights = results["accuracy"][-1], results["weights"]
    when_learned = {len(row): row[-1] for row in results["accuracy"]}
    at_once = len(when_learned) < len(final)  # several tasks in one lesson, which share all weights
    if at_once:
        when_learned = dict(enumerate(final, start=1))
    for index, task in enumerate(results["tasks"]):
        owned = weights["owned"][index]
        its_own = ("", "") if at_once else (f"{owned:,}", f"{owned / weights['prunable']:.2%}")
        table.add_row(
            str(task["number"]),
            ", ".join(task["class_names"]),
            f"{when_learned[task['number']]:.4f}",
            f"{final[index]:.4f}",
            *its_own,
            end_section=index == len(final) - 1,
        )
    average = np.mean(list(when_learned.values()))
    share = sum(weights["owned"]) / weights["prunable"]
    table.add_row(
        "", "average", f"{average:.4f}", f"{np.mean(final):.4f}", f"{sum(weights['owned']):,}", f"{share:.2%}"
    )
    return table
