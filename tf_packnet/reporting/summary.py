"""The table that is printed at the end of a run, and the weight counts in it."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from tf_packnet.errors import listed
from tf_packnet.pruning import ownership, timing
from tf_packnet.pruning.shares import EQUAL, UNIFORM
from tf_packnet.reporting import exports, metrics, rounds
from tf_packnet.system.console import Console
from tf_packnet.text import printable

# The line about free weights lists at most this many layers.
_MOST_LAYERS = 12


def count_weights(owner_maps: dict[str, np.ndarray], num_tasks: int) -> dict[str, Any]:
    """Count the prunable weights, and those that each task owns: in all, and per layer.

    Args:
        owner_maps: Owner map of each kernel, by path.
        num_tasks: Number of learned tasks.
    """
    owned = {path: ownership.count_by_owner(owner)[1 : num_tasks + 1].tolist() for path, owner in owner_maps.items()}
    return {
        "prunable": sum(owner.size for owner in owner_maps.values()),
        "owned": [sum(counts) for counts in zip(*owned.values(), strict=True)],
        "owned_by_layer": owned,
    }


def free_fraction(owner_maps: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the fraction of prunable weights that are free: `{"overall": float, "layers": {path: float}}`."""
    free = {path: int(np.count_nonzero(owner == 0)) for path, owner in owner_maps.items()}
    sizes = {path: owner.size for path, owner in owner_maps.items()}
    layers = {path: free[path] / sizes[path] for path in free}
    return {"overall": sum(free.values()) / sum(sizes.values()), "layers": layers}


def print_results(results: dict[str, Any], output_dir: Path, console: Console | None = None) -> None:
    """Print the table of a finished run and the paths of its files.

    Args:
        results: The content of `results.json`.
        output_dir: Output directory of the run.
        console: Where to print; default: standard output.
    """
    (console or Console()).print(render(results, output_dir))


def render(results: dict[str, Any], output_dir: Path) -> RenderableType:
    """Build the output of `print_results`."""
    free = results["free_fraction"]
    shares = [f"{path.removesuffix('/kernel')} {share:.1%}" for path, share in free["layers"].items()]
    more = [f"and {len(shares) - _MOST_LAYERS} more"] if len(shares) > _MOST_LAYERS else []
    layers = "  ".join([*shares[:_MOST_LAYERS], *more])
    measures = metrics.measures(results)
    backward, forward = _shown(measures["backward_transfer"], "+.4f"), _shown(measures["forward_transfer"], "+.4f")
    lines = [
        f"Forgetting    {_shown(measures['forgetting'])}  (backward transfer {backward}  forward transfer {forward})",
        *rounds.lines(results),
        f"Free weights  {free['overall']:.2%}  ({layers})",
        *_retraining(results.get("retraining", [])),
        f"Results       {output_dir / 'results.json'}",
    ]
    if results["config"]["approach"] == "packnet":
        lines.append(f"Pack          {output_dir / 'pack.packnet'}")
    if results["config"]["export"] and results["config"]["approach"] == "packnet":
        lines.append(f"SavedModels   {output_dir / 'export'}/task_1 .. task_{len(results['tasks'])}")
    lines.append(f"TensorBoard   {tensorboard_command()} --logdir {output_dir / 'tensorboard'}")
    compacted = exports.read_rows(output_dir / "export/report.json")
    above = [exports.render(compacted)] if compacted else []
    return Group(*above, _table(results), *lines, "")


def _retraining(parts: list[dict[str, Any]]) -> list[str]:
    """Return lines about retraining with a time budget, and the flags of a run with the same epochs."""
    lines = []
    for part in parts:
        used, share = (timing.shown(round(part[name], 1)) for name in ("seconds", "budget"))
        epochs = "+".join(map(str, part["round_epochs"]))
        seconds = "+".join(timing.shown(round(each, 1)) for each in part["round_seconds"])
        lines.append(f"Retraining    task {part['task']}: {used} of {share}, rounds of {epochs} epochs in {seconds}")
    if parts:
        lists = [",".join(map(str, part["round_epochs"])) for part in parts]
        most = max(sum(part["round_epochs"]) for part in parts)
        same = lists[0] if len(set(lists)) == 1 else "/".join(lists)
        lines.append(f"Same epochs   --retrain_epochs={most} --round_epochs={same}")
    return lines


def _shown(value: float | None, form: str = ".4f") -> str:
    return "unknown" if value is None else format(value, form)


def tensorboard_command() -> str:
    """Return the command of the TensorBoard that is installed with this Python."""
    ours = Path(sys.executable).parent / "tensorboard"
    on_path = shutil.which("tensorboard")
    if not ours.exists() or (on_path and Path(on_path) == ours):
        return "tensorboard"
    return str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)


def _table(results: dict[str, Any]) -> Table:
    config = results["config"]
    model = config.get("model", "mlp")
    network = f", {printable(model)}" if ":" in model else ""  # not one of the paper's
    lengths = config.get("round_epochs", UNIFORM)
    number = f"N = {config['prune_rounds']}" + (f" ({lengths})" if lengths != UNIFORM else "")
    shares = config.get("shares", EQUAL)
    size = f"p = {config['final_prune']:g}" if shares == EQUAL else f"shares {shares}"
    table = Table(
        title=f"{config['dataset']}{network}: {config['approach']}, {size}, {number}",
        caption=f"seed {config['seed']}, test accuracy",
    )
    for heading in ("task", "classes"):
        table.add_column(heading)
    for heading in ("when learned", "at the end", "own weights", "share"):
        table.add_column(heading, justify="right")
    final, weights = results["accuracy"][-1], results["weights"]
    when_learned = {len(row): row[-1] for row in results["accuracy"]}
    learned_together = len(when_learned) < len(final)  # with `multinet`; the tasks then share all weights
    if learned_together:
        when_learned = dict(enumerate(final, start=1))
    for index, task in enumerate(results["tasks"]):
        owned = weights["owned"][index]
        own_weights = ("", "") if learned_together else (f"{owned:,}", f"{owned / weights['prunable']:.2%}")
        table.add_row(
            str(task["number"]),
            listed(task["class_names"], 10),
            f"{when_learned[task['number']]:.4f}",
            f"{final[index]:.4f}",
            *own_weights,
            end_section=index == len(final) - 1,
        )
    average = np.mean(list(when_learned.values()))
    share = sum(weights["owned"]) / weights["prunable"]
    table.add_row(
        "", "average", f"{average:.4f}", f"{np.mean(final):.4f}", f"{sum(weights['owned']):,}", f"{share:.2%}"
    )
    return table
