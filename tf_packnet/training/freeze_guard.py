"""Checks that no committed task has changed, before training and after it."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import FreezeError


def checksums(model: keras.Model) -> dict[str, str]:
    """What every committed task has in every weight: a checksum in hex, by `task 1 in dense_1/kernel`."""
    found = lifecycle.committed_checksums(model)
    return {f"task {task} in {path}": value for task, values in found.items() for path, value in values.items()}


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
    """Checks when the block begins and when it ends that every committed task computes what it did when committed.

    Raises:
        FreezeError: If one does not.
    """
    lifecycle.check_tasks(model)
    yield
    lifecycle.check_tasks(model)
