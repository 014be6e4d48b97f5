"""Switches to a new version of a pack without interrupting the server: `Versions`."""

import asyncio
import contextlib
import gc
from collections.abc import Callable

from tf_packnet.errors import ArgumentError, first_line
from tf_packnet.serving import sources
from tf_packnet.serving.servable import Servable, load
from tf_packnet.serving.settings import Settings
from tf_packnet.serving.sources import Source


class Versions:
    """The versions of a pack. One of them serves.

    Args:
        settings: Where they are, and how to open them.
        log: Called with one line for each version that is loaded or refused.

    Attributes:
        current: The version that serves. Each request reads this attribute once, so that a switch does not affect
            requests in progress. A version is freed with the last request that uses it.
    """

    def __init__(self, settings: Settings, log: Callable[[str], None]):
        self._settings = settings
        self._log = log
        self._refused: dict[int, Source] = {}
        self._seen: list[Source] = []
        self.current = self._first()

    async def watch(self) -> None:
        """Check for a newer version every `poll_seconds`. Load it in a thread, and switch to it."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await asyncio.to_thread(self.poll)
            except Exception as error:  # the server must keep serving the version that it has
                self._log(f"cannot look for versions: {first_line(error)}")

    def poll(self) -> None:
        """Load the newest version if it is not the current one and has not changed since the last poll."""
        found, before = [self._numbered(source) for source in sources.find(self._settings.pack)], self._seen
        self._seen = found
        for source in found:
            current = self.current.source
            is_settled = source in before and source not in (current, self._refused.get(source.version))
            servable = self._loaded(source) if is_settled else None
            if servable is not None:
                self.current = servable
                self._log(f"{_serving(servable)}, version {current.version} no more requests")
                gc.collect()
                return
            if source.version == current.version:  # even if its files are damaged now
                return

    def _first(self) -> Servable:
        """Load the newest version that can be loaded.

        Raises:
            ArgumentError: If there is none.
        """
        self._seen = sources.find(self._settings.pack)
        for source in self._seen:
            servable = self._loaded(source)
            if servable is not None:
                self._log(_serving(servable))
                return servable
        raise ArgumentError(
            "pack", "a version that can be loaded (the lines above say why not)", str(self._settings.pack)
        )

    def _loaded(self, source: Source) -> Servable | None:
        """Load a version; log the reason and return None if it is damaged, or not complete yet."""
        try:
            return load(source, self._settings)
        except Exception as error:  # TensorFlow and Keras raise errors of many types
            self._refused[source.version] = source
            self._log(f"version {source.version} is refused: {first_line(error)}")
            return None

    def _numbered(self, source: Source) -> Source:
        """Return a pack that is not in a folder of versions with the next number if its files have changed."""
        current = self.current.source
        if source.path != self._settings.pack:
            return source
        changed = source.stamp != current.stamp
        return source._replace(version=current.version + changed)


def _serving(servable: Servable) -> str:
    count = len(servable.tasks)
    return f"version {servable.source.version} serves {count} task{'s' * (count > 1)}"


async def cancelled(task: asyncio.Task) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
