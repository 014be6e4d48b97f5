"""Measures the gradient steps of many runs that train together in one process, compared with those of one run.

    python -m launch.benchmarks.fleets                               the MNIST preset, 1, 32 and 128 runs
    python -m launch.benchmarks.fleets --model=conv --sizes=1,4,8

A single run uses its own function. On a GPU, one program does the steps of several runs at once; on a CPU, the runs are
computed one after another. The time includes copying the variables of each run into the call and back, as in an epoch
of an experiment, but no callbacks and no validation.
"""

import argparse
import itertools
import os
import statistics
import time

os.environ["KERAS_BACKEND"] = "tensorflow"

EXAMPLES = {"mlp": ((28, 28, 1), 12_000), "conv": ((32, 32, 3), 2_000)}


def measure(model: str, runs: int, calls: int) -> tuple[float, float]:
    """Measure calls of one epoch each. The first call compiles and is measured separately.

    Args:
        model: `mlp` or `conv`, the networks of the paper.
        runs: Number of runs that train together.
        calls: Number of calls to measure after the first one.

    Returns:
        Median milliseconds per step of all runs, and seconds of the first call, with compilation.
    """
    from launch.benchmarks import floors
    from launch.benchmarks.devices import trained
    from launch.benchmarks.training import noise_images
    from tf_packnet.runs.config import Config
    from tf_packnet.training.fleet import Fleet
    from tf_packnet.training.fleet_program import Call

    batch_size = {"mlp": floors.BATCH, "conv": floors.CONV_BATCH}[model]
    config = Config(model=model, train_epochs=1, retrain_epochs=1, prune_rounds=1, batch_size=batch_size)
    shape, examples = EXAMPLES[model]
    task = noise_images(shape, examples, tasks=1, batch_size=batch_size)[0]
    packed = trained(config, task, None)
    batches = task.training_batches(0, True)
    packed.fit(batches, epochs=1, verbose=0)
    program = Fleet(runs, stacked=None if runs > 1 else False)._program("", packed)
    seconds = []
    for element in itertools.islice(batches.dataset(1), calls + 1):
        together = [Call(packed, element) for _ in range(runs)]
        began = time.perf_counter()
        program.take(together)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[1:]) / batches.steps, seconds[0]


def main() -> None:
    """Measure, and print a line for each number of runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=sorted(EXAMPLES), default="mlp")
    parser.add_argument("--sizes", default="1,32,128", help="numbers of runs side by side")
    parser.add_argument("--calls", type=int, default=5)
    given = parser.parse_args()

    from tf_packnet.system.quiet import start_tensorflow

    start_tensorflow()
    single = None
    for runs in map(int, given.sizes.split(",")):
        step, first = measure(given.model, runs, given.calls)
        single = single or step / runs
        print(
            f"{given.model}, {runs} runs side by side: {step:.3f} ms per step of all, "
            f"{1e3 * step / runs:.1f} us per run; "
            f"{single * runs / step:.1f} times the throughput of the first line; first call {first:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
