"""Many tasks in one process: no threads, open files or RAM are leaked."""

import gc
import threading

import keras
import psutil
import pytest

import tf_packnet as tp
from tests.conftest import blobs, compile_model


def network() -> keras.Model:
    layers = [keras.Input((6,)), *(keras.layers.Dense(64, activation="relu") for _ in range(2)), keras.layers.Dense(2)]
    return keras.Sequential(layers)


def learn_tasks(tasks: int, samples: tuple[int, ...], folder) -> dict[int, dict[str, int]]:
    """Learn and evaluate many tasks. Return the resources of the process after the tasks in `samples`."""
    schedule = tp.EqualShare(0.5, tasks, rounds=2)
    packed = compile_model(tp.pack(network()), "adam")
    held = {}
    for number in range(1, tasks + 1):
        task = tp.tasks.from_arrays(f"t{number}", *blobs(number), batch_size=16)
        packed.begin_task(task.name, task.num_classes)
        callbacks = [tp.PruneRoundScheduler(schedule), tp.GradientMask(), tp.TaskMaskSnapshot(folder)]
        packed.fit(task.training_batches(seed=number, resident=True), epochs=2, verbose=0)
        packed.fit(task.training_batches(seed=number, resident=True), epochs=2, verbose=0, callbacks=callbacks)
        packed.select_task(number)
        packed.evaluate(task.test, verbose=0)
        if number in samples:
            gc.collect()
            process = psutil.Process()
            held[number] = {
                "threads": process.num_threads(),
                "python threads": threading.active_count(),
                "files": process.num_fds(),
                "bytes": process.memory_info().rss,
            }
    assert packed.committed_tasks == tasks
    return held


@pytest.mark.slow
def test_threads_and_files_do_not_grow(tmp_path):
    held = learn_tasks(20, (8, 20), tmp_path)
    for what in ("threads", "python threads", "files"):
        assert held[20][what] <= held[8][what], held


# In bytes. 0.3 MB were measured over 40 tasks; how many pages allocators keep varies.
GROWTH = 32 * 2**20


@pytest.mark.slow
def test_memory_threads_and_files_over_a_hundred_tasks(tmp_path):
    held = learn_tasks(100, (20, 60, 100), tmp_path)
    for what in ("threads", "python threads", "files"):
        assert held[100][what] <= held[20][what], held
    assert held[100]["bytes"] - held[20]["bytes"] <= GROWTH, held
