"""Runs the server until a signal ends it."""

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING

from tf_packnet.errors import ArgumentError, one_line
from tf_packnet.serving import sources
from tf_packnet.serving.settings import Settings
from tf_packnet.system import interruption, python_files, quiet
from tf_packnet.system.extras import require_extra

if TYPE_CHECKING:
    from tf_packnet.serving.app import Api

# Seconds that running requests may take to finish after the signal to end.
_DRAIN_SECONDS = 30.0


def serve(settings: Settings) -> None:
    """Serve a pack until the process receives SIGTERM or SIGINT. Requests in progress are still answered.

    Raises:
        ArgumentError: If the pack cannot be loaded, or the address is not free.
        MissingExtraError: If a library of the extra `serve` is not installed.
    """
    require_extra("Serving", "aiohttp", extra="serve")
    sources.check(settings.pack)
    python_files.check("layers", settings.layers)
    quiet.start_tensorflow(on_cpu=True)
    python_files.load_for("layers", settings.layers)
    from tf_packnet.serving.app import Api
    from tf_packnet.serving.versions import Versions

    api = Api(Versions(settings, _log), settings, _log)
    asyncio.run(_run(api, settings))


async def _run(api: "Api", settings: Settings) -> None:
    from aiohttp import web

    logging.getLogger("aiohttp.server").disabled = True  # it logs a traceback for every truncated body
    stopped = asyncio.Event()
    runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=_DRAIN_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as error:
            address = f"{settings.host}:{settings.port}"
            raise ArgumentError("port", f"a free port ({error.strerror or error})", address) from error
        loop = asyncio.get_running_loop()
        for number in interruption.SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, stopped.set)
        host, port = runner.addresses[0][:2]
        _log(f"listening on http://{host}:{port}/v1/models/{settings.name}")
        await stopped.wait()
        _log("ending after the requests that have begun")
    finally:
        await runner.cleanup()


def _log(message: str) -> None:
    print(f"tf-packnet serve: {one_line(message)}", file=sys.stderr, flush=True)
