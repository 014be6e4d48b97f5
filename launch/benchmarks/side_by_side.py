"""Avalanche's PackNet beside ours: the same tasks and schedule, one after the other on all cores.

Avalanche is PyTorch's and has an environment of its own; what runs there is `docs/comparison/avalanche_packnet.py`.
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from launch.benchmarks import Row
from launch.benchmarks.processes import LAUNCHER, MNIST, ROOT
from tf_packnet.command_line.run_command import parse_command
from tf_packnet.runs.data import load_stream

SCRIPT = ROOT / "docs/comparison/avalanche_packnet.py"


def avalanche(python: str, epochs: int) -> list[Row]:
    """The MNIST preset with `epochs` of training and as many after pruning, by both.

    Args:
        python: A Python that can import avalanche.
        epochs: Epochs of a stage.
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
        Row("avalanche", "Avalanche's PackNet, training alone", step, "ms/step", ours["step"], note="PyTorch"),
        Row("avalanche", "ours, stages with validation and all callbacks", ours["step"], "ms/step"),
        Row("avalanche", "Avalanche's PackNet, the whole process", theirs["whole"], "s", whole),
        Row("avalanche", "ours, the whole process with evaluation, packs and exports", whole, "s"),
        Row("avalanche", "Avalanche's PackNet, average accuracy", accuracy, ""),
        Row("avalanche", "ours, average accuracy", ours["accuracy"], ""),
        Row("avalanche", "Avalanche's PackNet, largest change of an earlier task's logits", theirs["changed"], ""),
    ]


def _avalanche(python, config, path) -> dict:
    """What the script says, and `whole`: the seconds of its process."""
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
        "prune_proportion": config.final_prune ** (1 / len(stream)),  # of what is free, as `EqualShare` has it
    }
    began = time.perf_counter()
    said = subprocess.run([python, str(SCRIPT), str(path), json.dumps(settings)], capture_output=True, text=True)
    if said.returncode:
        raise RuntimeError(f"{python} {SCRIPT.name}: {said.stderr.strip()}")
    return {**json.loads(said.stdout.splitlines()[-1]), "whole": time.perf_counter() - began}
