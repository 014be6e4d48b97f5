"""Connects the workers of a run at its start: the first worker waits until all other workers have connected to it."""

import json
import socket
import struct
import sys
import time

from tf_packnet.errors import ArgumentError, WorkerEndedError
from tf_packnet.runs.hosts import Hosts

# How long to wait for all workers, in seconds.
MEET_SECONDS = 300.0
# After how many seconds to show which workers are missing.
_SHOW_SECONDS = 10.0
_HELLO_SECONDS, _LONGEST_HELLO = 5.0, 2**17
_LENGTH = struct.Struct("!I")


def meet(hosts: Hosts) -> dict[int, socket.socket]:
    """Wait for all workers.

    Returns:
        Connections by worker number: on the first worker, one to each other worker; on the others, one to the first.

    Raises:
        ArgumentError: If the port of this worker is not free, or the first worker already has a worker with this
            number, or has other hosts.
        WorkerEndedError: If a worker does not come up within `MEET_SECONDS`.
    """
    with _listening(hosts) as server:
        return _gather(hosts, server) if hosts.index == 0 else {0: _connect(hosts)}


def _listening(hosts: Hosts) -> socket.socket:
    address = hosts.addresses[hosts.index]
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        return socket.create_server(("", int(port)), family=family, backlog=len(hosts.addresses))
    except OSError as error:
        expected = f"a free port on this host for worker {hosts.index} ({address}: {error.strerror})"
        raise ArgumentError("hosts", expected, ",".join(hosts.addresses)) from error


def _gather(hosts: Hosts, server: socket.socket) -> dict[int, socket.socket]:
    connections: dict[int, socket.socket] = {}
    server.settimeout(0.5)  # signals are handled in between
    waiting = _Waiting()
    while len(connections) < len(hosts.addresses) - 1:
        missing = [each for i, each in enumerate(hosts.addresses) if i and i not in connections]
        waiting.check(", ".join(missing))
        try:
            connection, _ = server.accept()
            connection.settimeout(_HELLO_SECONDS)
            hello = dict(_read(connection))
            refusal = _refusal(hosts, hello, connections)
            _write(connection, refusal)
        except (OSError, ValueError, TypeError, EOFError):  # no connection yet, or not from a worker
            continue
        if refusal:
            connection.close()
        else:
            connections[hello["index"]] = connection
    return connections


def _refusal(hosts: Hosts, hello: dict, connections: dict[int, socket.socket]) -> list[str]:
    """Return the argument and the expected value for the error of a worker that must not join; empty if it may join."""
    if hello.get("hosts") != list(hosts.addresses):
        return ["hosts", f"the same on every host ({','.join(hosts.addresses)} on the first)"]
    if type(hello.get("index")) is not int or not 1 <= hello["index"] < len(hosts.addresses):
        return ["host_index", "that of a worker"]
    if hello["index"] in connections:
        return ["host_index", "a different one on every host (another worker has this one)"]
    return []


def _connect(hosts: Hosts) -> socket.socket:
    host, _, port = hosts.addresses[0].rpartition(":")
    waiting, reason = _Waiting(), ""
    while True:
        waiting.check(f"the first worker, {hosts.addresses[0]}{reason}")
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_HELLO_SECONDS)
        except OSError as error:  # the host may not be up yet, or its name not known
            reason = f" ({error.strerror or error})"
            time.sleep(0.5)
            continue
        try:
            _write(connection, {"hosts": hosts.addresses, "index": hosts.index})
            refusal = _read(connection)
        except (OSError, ValueError, EOFError):  # not the first worker, or not ready
            connection.close()
            time.sleep(0.5)
            continue
        if refusal:
            argument, expected = refusal
            received = {"hosts": ",".join(hosts.addresses), "host_index": hosts.index}[argument]
            raise ArgumentError(argument, expected, received)
        return connection


class _Waiting:
    """Shows which workers this process waits for, and ends the wait after `MEET_SECONDS`."""

    def __init__(self) -> None:
        self._began, self._shown = time.monotonic(), False

    def check(self, missing: str) -> None:
        """Raise WorkerEndedError if the wait was too long."""
        waited = time.monotonic() - self._began
        if waited > MEET_SECONDS:
            raise WorkerEndedError(f"{missing} did not come up within {MEET_SECONDS:.0f} s")
        if waited > _SHOW_SECONDS and not self._shown:
            self._shown = True
            print(f"waiting for {missing}", file=sys.stderr, flush=True)


def _write(connection: socket.socket, value: object) -> None:
    content = json.dumps(value).encode()
    connection.sendall(_LENGTH.pack(len(content)) + content)


def _read(connection: socket.socket) -> dict:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > _LONGEST_HELLO:
        raise ValueError("no worker of this run")
    return json.loads(_exactly(connection, length))


def _exactly(connection: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = connection.recv(length - len(content))
        if not part:
            raise EOFError
        content += part
    return content
