"""Compares Avalanche's PackNet with tf_packnet: same tasks and schedule, one after the other on all cores.

Avalanche needs PyTorch and a separate environment, in which `docs/comparison/avalanche_packnet.py` runs.
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from launch.benchmarks import Row
from launch.benchmarks.processes import LAUNCHER, MNIST, ROOT
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.runs.config import Config
from tf_packnet.runs.data import load_stream

SCRIPT = ROOT / "docs/comparison/avalanche_packnet.py"


def avalanche(python: str, epochs: int) -> list[Row]:
    """Run the MNIST preset in both libraries, with `epochs` epochs of training and as many of retraining per task.

    Args:
        python: Python interpreter with avalanche-lib.
        epochs: Epochs per stage.
    """
    flags = [MNIST, f"--train_epochs={epochs}", f"--retrain_epochs={epochs}"]
    with tempfile.TemporaryDirectory() as folder:
        theirs = _avalanche(python, parse_command(["main.py", *flags]).config, Path(folder, "tasks.npz"))
        began = time.perf_counter()
        subprocess.run([*LAUNCHER, *flags, f"--output_dir={folder}/run"], capture_output=True, check=True)
        whole = time.perf_counter() - began
        results = json.loads(Path(folder, "run/results.json").read_text())
    steps = 2 * epochs * sum(t["examples"]["train"] // results["config"]["batch_size"] for t in results["tasks"])
    ours = {
        "step": 1e3 * sum(stage["seconds"] for stage in results["seconds"]) / steps,
        "accuracy": results["average_accuracy"],
    }
    step = 1e3 * theirs["seconds"] / theirs["steps"]
    accuracy = float(np.mean(theirs["accuracy"]))
    return [
        Row("avalanche", "Avalanche's PackNet, training only", step, "ms/step", ours["step"], note="PyTorch"),
        Row("avalanche", "tf_packnet, stages with validation and all callbacks", ours["step"], "ms/step"),
        Row("avalanche", "Avalanche's PackNet, the whole process", theirs["whole"], "s", whole),
        Row("avalanche", "tf_packnet, the whole process with evaluation, packs and exports", whole, "s"),
        Row("avalanche", "Avalanche's PackNet, average accuracy", accuracy, ""),
        Row("avalanche", "tf_packnet, average accuracy", ours["accuracy"], ""),
        Row("avalanche", "Avalanche's PackNet, largest change of an earlier task's logits", theirs["changed"], ""),
    ]


def _avalanche(python: str, config: Config, path: Path) -> dict[str, Any]:
    """Run the Avalanche script and return its results and `whole`, the seconds of its process."""
    stream = load_stream(config)
    arrays = {
        f"task_{task.number}_{name}_{part}": getattr(task.splits[name], part)
        for task in stream
        for name in ("train", "test")
        for part in ("x", "y")
    }
    np.savez(path, **arrays)
    settings = {
        "threads": len(os.sched_getaffinity(0)),
        "seed": config.seed,
        "classes": stream.num_classes,
        "hidden_units": config.hidden_units,
        "epochs": config.train_epochs,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "prune_proportion": config.final_prune ** (1 / len(stream)),  # share of the free weights, as in `EqualShare`
    }
    began = time.perf_counter()
    completed = subprocess.run([python, str(SCRIPT), str(path), json.dumps(settings)], capture_output=True, text=True)
    if completed.returncode:
        raise RuntimeError(f"{python} {SCRIPT.name}: {completed.stderr.strip()}")
    return {**json.loads(completed.stdout.splitlines()[-1]), "whole": time.perf_counter() - began}
