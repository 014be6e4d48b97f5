"""Watches over what tasks have committed: a checksum a task and weight, before training and after it."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from tf_packnet import lifecycle
from tf_packnet.errors import FreezeError
from tf_packnet.layers.masked_weight import MaskedWeight
from tf_packnet.layers.weights import view

# Owner, value, checksum: what is looked at at once takes some megabytes, however large the kernel.
CHUNK = 2**20


def checksums(model: keras.Model) -> dict[str, str]:
    """What every committed task has in every weight: a checksum in hex, by `task 1 in dense_1/kernel`."""
    found: dict[str, str] = {}
    for path, weight in lifecycle.masked_weights(model).items():
        for task, checksum in _by_owner(weight, lifecycle.committed_tasks(model)).items():
            found[f"task {task} in {path}"] = checksum
    for path, task, value in lifecycle.kept_values(model):
        found[f"task {task} in {path}"] = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
    return found


def by_task(model: keras.Model) -> dict[str, str]:
    """The same for all weights together: a checksum in hex, by `task 1`."""
    found = {f"task {task}": hashlib.sha256() for task in range(1, lifecycle.committed_tasks(model) + 1)}
    for name, checksum in sorted(checksums(model).items()):
        found[name.partition(" in ")[0]].update(f"{name} {checksum}\n".encode())
    return {task: checksum.hexdigest() for task, checksum in found.items()}


def check(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raises FreezeError if anything has changed from `before` to `after`, see `checksums` and `by_task`."""
    changed = [name for name, checksum in before.items() if after.get(name) != checksum]
    if changed:
        raise FreezeError(
            f"committed weights have changed, of {', '.join(changed[:5])}{' and others' * (len(changed) > 5)}: "
            "something assigned to them (a callback?), or memory is damaged. What was trained since cannot be relied on"
        )


@contextlib.contextmanager
def guarded(model: keras.Model) -> Iterator[None]:
    """Checks when the block ends that no committed value has changed in it.

    Raises:
        FreezeError: If one has.
    """
    before = checksums(model)
    yield
    check(before, checksums(model))


def _by_owner(weight: MaskedWeight, tasks: int) -> dict[int, str]:
    """Checksums of the places and values that each of the first `tasks` owns in a kernel."""
    owners, values = view(weight.owner).ravel(), view(weight.frozen).ravel()
    found = {task: hashlib.sha256() for task in range(1, tasks + 1)}
    for first in range(0, owners.size, CHUNK):
        owner = owners[first : first + CHUNK]
        order = np.argsort(owner, kind="stable").astype(np.uint32)  # by owner, then by place
        ends = np.searchsorted(owner[order], np.arange(1, tasks + 2, dtype=np.uint8 if tasks < 255 else int))
        for task, checksum in found.items():
            own = order[ends[task - 1] : ends[task]]
            checksum.update(own + np.uint32(first % 2**32))
            checksum.update(np.ascontiguousarray(values[first : first + CHUNK][own]))
    return {task: checksum.hexdigest() for task, checksum in found.items()}
