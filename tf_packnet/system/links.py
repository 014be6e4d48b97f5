"""Connections between the processes of a run, which notice immediately when the other process ends."""

import contextlib
import queue
import select
import socket
import struct
import threading
from collections.abc import Callable

# A process that sends nothing for SILENCE_SECONDS has ended, or its host is unreachable. Each process sends a heartbeat
# every LIFE_SECONDS.
SILENCE_SECONDS, LIFE_SECONDS = 30.0, 5.0

_HEADER = struct.Struct("!cQ")
_MESSAGE, _ALIVE, _LEAVING, _ENDED = b"M", b"A", b"L", b"E"
_LONGEST_REASON = 2**16


class Link:
    """A connection to another process that carries messages in both directions, in order.

    Args:
        connection: A connected socket. This object owns it.
        on_ended: Called once, in another thread, if the other process ends before it calls `leave`. The argument is the
            reason passed to `end`, or None if the process ended without one.
    """

    def __init__(self, connection: socket.socket, on_ended: Callable[[bytes | None], None]):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._on_ended = connection, on_ended
        self._received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._closed, self._left = threading.Event(), threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._show_life, daemon=True).start()

    def send(self, message: bytes) -> None:
        """Send a message."""
        self._send(_MESSAGE, message)

    def receive(self, seconds: float) -> bytes | None:
        """Return the next message; None if none arrives within `seconds`."""
        try:
            return self._received.get(timeout=seconds)
        except queue.Empty:
            return None

    def leave(self) -> None:
        """Tell the other process that this one is done, so that the end of the connection is not an error."""
        self._closed.set()
        self._send(_LEAVING, b"")

    def has_left(self, seconds: float) -> bool:
        """Wait up to `seconds` for the other process to call `leave`. Return whether it has."""
        return self._left.wait(seconds)

    def end(self, reason: bytes) -> None:
        """Tell the other process why this one ends, and close the connection."""
        self._closed.set()
        self._send(_ENDED, reason[:_LONGEST_REASON])
        self.close()

    def close(self) -> None:
        """Close the connection after all sent messages have arrived."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        if threading.current_thread() is not self._reader and not self._left.is_set():
            self._reader.join(2.0)  # data that is not read would make the system discard what was sent
        self._connection.close()

    def _send(self, kind: bytes, content: bytes) -> None:
        with self._sending, contextlib.suppress(OSError):  # `_read` notices that the process has ended
            self._connection.sendall(_HEADER.pack(kind, len(content)))
            self._connection.sendall(content)

    def _show_life(self) -> None:
        while not self._closed.wait(LIFE_SECONDS):
            self._send(_ALIVE, b"")

    def _read(self) -> None:
        reason = None
        try:
            while True:
                kind, length = _HEADER.unpack(self._exactly(_HEADER.size))
                content = self._exactly(length)
                if kind == _MESSAGE:
                    self._received.put(content)
                elif kind == _LEAVING:
                    self._left.set()
                elif kind == _ENDED:
                    reason = content
                    break
        except (OSError, EOFError, ValueError):
            pass
        if not self._left.is_set() and not self._closed.is_set():
            self._on_ended(reason)

    def _exactly(self, length: int) -> bytes:
        content = bytearray(length)
        view, got = memoryview(content), 0
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while got < length:
            if not poll.poll(1000 * SILENCE_SECONDS):
                raise TimeoutError
            count = self._connection.recv_into(view[got:])
            if count == 0:
                raise EOFError
            got += count
        return bytes(content)
