"""Batches waiting requests: `Batcher`."""

import asyncio
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from tf_packnet.errors import first_line
from tf_packnet.serving.errors import RequestError
from tf_packnet.serving.servable import ServedTask

Tensors = Mapping[str, np.ndarray]


class _Item(NamedTuple):
    """The examples of one request, or a part of them."""

    task: ServedTask
    inputs: Tensors
    size: int
    done: asyncio.Future

    @property
    def key(self) -> tuple[Any, ...]:
        """A key that is equal for items that can be in one batch."""
        return (id(self.task), *(each.shape[1:] for each in self.inputs.values()))


class Batcher:
    """Computes examples in threads. While all threads are busy, requests wait.

    A free thread takes all waiting requests that fit into one batch. So no request waits for later ones, and batches
    grow with the load.

    Args:
        max_batch: Maximum number of examples in one call.
        threads: Number of parallel calls.
    """

    def __init__(self, max_batch: int, threads: int = 1):
        self._max_batch = max_batch
        self._free = threads
        self._pool = ThreadPoolExecutor(threads, "compute")
        self._waiting: deque[_Item] = deque()
        self._calls: set[asyncio.Task] = set()

    async def run(self, task: ServedTask, inputs: Tensors) -> dict[str, np.ndarray]:
        """Compute the outputs for the examples of a request.

        Raises:
            RequestError: If the network cannot compute with these examples, or an output is not finite.
        """
        size = len(next(iter(inputs.values())))
        loop = asyncio.get_running_loop()
        items = []
        for start in range(0, size, self._max_batch):
            part = {key: value[start : start + self._max_batch] for key, value in inputs.items()}
            items.append(_Item(task, part, min(self._max_batch, size - start), loop.create_future()))
        self._waiting.extend(items)
        self._start_calls()
        parts = await asyncio.gather(*(item.done for item in items))
        return parts[0] if len(parts) == 1 else {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False)

    def _start_calls(self) -> None:
        while self._free and self._waiting:
            call = asyncio.ensure_future(self._call(self._next_batch()))
            self._free -= 1
            self._calls.add(call)  # the event loop keeps only weak references
            call.add_done_callback(self._calls.discard)

    def _next_batch(self) -> list[_Item]:
        """Take the item that has waited longest, and all items that fit into its batch."""
        batch = [self._waiting.popleft()]
        room, others = self._max_batch - batch[0].size, deque[_Item]()
        while self._waiting and room:
            item = self._waiting.popleft()
            if item.size <= room and item.key == batch[0].key:
                batch.append(item)
                room -= item.size
            else:
                others.append(item)
        self._waiting.extendleft(reversed(others))
        return batch

    async def _call(self, batch: list[_Item]) -> None:
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._pool, _outputs, batch)
        except BaseException as error:
            results = [error] * len(batch)
        self._free += 1
        self._start_calls()
        for item, result in zip(batch, results, strict=True):
            if item.done.done():
                continue
            if isinstance(result, BaseException):
                item.done.set_exception(result)
            else:
                item.done.set_result(result)


def _outputs(batch: list[_Item]) -> list[Any]:
    """Compute the outputs of each item; for an item that cannot be computed, its error."""
    task = batch[0].task
    try:
        outputs = task({key: np.concatenate([item.inputs[key] for item in batch]) for key in batch[0].inputs})
    except Exception as error:  # from TensorFlow, such as for an index that an Embedding does not have
        if len(batch) > 1:
            return [result for item in batch for result in _outputs([item])]
        return [RequestError(400, f"input: expected examples that the network can compute with ({first_line(error)})")]
    ends = np.cumsum([item.size for item in batch])
    parts = [
        {key: value[end - item.size : end] for key, value in outputs.items()}
        for item, end in zip(batch, ends, strict=True)
    ]
    return [_checked(part) for part in parts]


def _checked(outputs: dict[str, np.ndarray]) -> Any:
    for value in outputs.values():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            return RequestError(
                400, "input: expected examples for which the network has finite outputs; received NaN or infinity"
            )
    return outputs
