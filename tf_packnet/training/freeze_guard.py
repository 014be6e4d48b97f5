"""Checks that no committed task has changed: around a `fit`, or between two stages of a run."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import keras

from tf_packnet import lifecycle
from tf_packnet.errors import FreezeError, listed


def checksums(model: keras.Model) -> dict[str, str]:
    """Return checksums, in hex, of the committed values of each task in each weight.

    Returns:
        `{"task 1 in dense_1/kernel": checksum}`.
    """
    by_task_and_path = lifecycle.committed_checksums(model)
    return {
        f"task {task} in {path}": checksum
        for task, by_path in by_task_and_path.items()
        for path, checksum in by_path.items()
    }


def by_task(model: keras.Model) -> dict[str, str]:
    """Return a checksum, in hex, of all committed values of each task: `{"task 1": checksum}`."""
    digests = {f"task {task}": hashlib.sha256() for task in range(1, lifecycle.committed_tasks(model) + 1)}
    for name, checksum in sorted(checksums(model).items()):
        digests[name.partition(" in ")[0]].update(f"{name} {checksum}\n".encode())
    return {task: digest.hexdigest() for task, digest in digests.items()}


def check(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Compare two results of `checksums` or `by_task`.

    Args:
        before: The earlier checksums.
        after: The later ones; it may have more tasks.

    Raises:
        FreezeError: If a checksum in `before` is missing from `after` or different there.
    """
    changed = [name for name, checksum in before.items() if after.get(name) != checksum]
    if changed:
        raise FreezeError(
            f"committed weights of {listed(changed)} have changed. Code such as a callback has assigned to them, or "
            "memory is damaged. Do not use anything that was trained since"
        )


@contextlib.contextmanager
def guarded(model: keras.Model) -> Iterator[None]:
    """Check before and after the block that every committed task has the same outputs as when it was committed.

    Raises:
        FreezeError: If the outputs of a task differ.
    """
    lifecycle.check_tasks(model)
    yield
    lifecycle.check_tasks(model)
