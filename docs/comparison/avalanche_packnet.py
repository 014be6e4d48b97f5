"""Trains Avalanche's PackNet on the tasks of the MNIST preset. `python -m launch.bench --only=avalanche` runs this.

Network, tasks, epochs, optimizer and the share of the weights that each task keeps are those of the MNIST preset.
Avalanche's PackNet has no per-task heads: its single head is pruned with the rest.

    python docs/comparison/avalanche_packnet.py tasks.npz '{"threads": 2, "epochs": 24, ...}'
"""

import json
import sys
import time
import warnings

import numpy as np
import torch
from avalanche.benchmarks import task_incremental_benchmark, tensors_benchmark
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.models import SimpleMLP
from avalanche.models.packnet import PackNetModel, PackNetPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive


def main(data_path: str, settings: dict) -> dict:
    """Learn all tasks, with `epochs` epochs before pruning and as many after it.

    Args:
        data_path: `.npz` file with the arrays of all tasks.
        settings: `threads`, `seed`, `classes`, `hidden_units`, `epochs`, `batch_size`, `learning_rate`,
            `prune_proportion`.

    Returns:
        `seconds` of training, number of gradient `steps`, test `accuracy` of each task at the end, and `changed`: the
        largest absolute change of a test logit between the end of its task and the end of the last task.
    """
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    tasks = load(data_path)
    tensors = {f"{split}_tensors": [task[split] for task in tasks] for split in ("train", "test")}
    benchmark = tensors_benchmark(**tensors, task_labels=[0] * len(tasks))
    benchmark = with_classes_timeline(task_incremental_benchmark(benchmark, reset_task_labels=True))
    hidden = settings["hidden_units"]
    network = SimpleMLP(settings["classes"], tasks[0]["train"][0].shape[1], hidden[0], len(hidden), drop_rate=0.0)
    model = PackNetModel(network)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=settings["learning_rate"]),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=settings["batch_size"],
        train_epochs=2 * settings["epochs"],
        plugins=[PackNetPlugin(settings["epochs"], settings["prune_proportion"])],
        evaluator=EvaluationPlugin(),
    )
    seconds, steps, logits_after_task = 0.0, 0, []
    for number, experience in enumerate(benchmark.train_stream):
        began = time.perf_counter()
        strategy.train(experience)
        seconds += time.perf_counter() - began
        steps += strategy.clock.train_exp_iterations
        logits_after_task.append(logits(model, tasks[number]["test"][0], number))
    final_logits = [logits(model, task["test"][0], number) for number, task in enumerate(tasks)]
    correct = [(logit.argmax(1) == task["test"][1]).float() for logit, task in zip(final_logits, tasks, strict=True)]
    changed = [(before - after).abs().max() for before, after in zip(logits_after_task, final_logits, strict=True)]
    return {
        "seconds": seconds,
        "steps": steps,
        "accuracy": [float(task_correct.mean()) for task_correct in correct],
        "changed": float(max(changed)),
    }


def load(path: str) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Load the train and test split of each task: images as `float32` rows, and labels as integers."""
    arrays = np.load(path)
    tasks = []
    for number in range(1, 1 + max(int(name.split("_")[1]) for name in arrays)):
        task = {}
        for split in ("train", "test"):
            x, y = (torch.tensor(arrays[f"task_{number}_{split}_{name}"]) for name in "xy")
            task[split] = x.reshape(len(x), -1), y.long()
        tasks.append(task)
    return tasks


@torch.no_grad()
def logits(model: PackNetModel, x: torch.Tensor, task: int) -> torch.Tensor:
    """Return the logits for `x` with the weights of `task`."""
    model.eval()
    return model(x, torch.full((len(x),), task))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
