"""JSON objects, one a line, over a socket pair: how supervisor, tenant and workers talk.

The sender of a line is less trusted than its reader (a worker may have been taken over by its guest), so a line has a
length limit and anything that is not a JSON object is an error of the peer, never an exception of ours.
"""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

LINE_BYTES_MAX = 1 << 20
_CHUNK_BYTES = 1 << 16

Message = dict[str, Any]


class ChannelError(Exception):
    """The peer sent something that is not a line of JSON, or a line without end."""


def encode(message: Message) -> bytes:
    """The line for ``message``."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The object of one line. Raises ChannelError."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ChannelError(f"not JSON: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise ChannelError(f"not an object: {line[:80]!r}")
    return message


class Channel:
    """One end of a socket pair, blocking to write and to read."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._pending = b""

    def fileno(self) -> int:
        """The descriptor, for selectors and for the data plane."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end; the peer reads an end of file."""
        self._end.close()

    def send(self, message: Message) -> bool:
        """Write one line; False if the peer is gone."""
        try:
            self._end.sendall(encode(message))
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """The complete lines that one read brings (perhaps none yet), or None at the end of file."""
        try:
            data = self._end.recv(_CHUNK_BYTES)
        except (ConnectionError, TimeoutError):
            data = b""
        if not data:
            return None
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > LINE_BYTES_MAX:
            raise ChannelError(f"a line of more than {LINE_BYTES_MAX} bytes")
        return [decode(line) for line in lines]

    def messages(self) -> Iterator[Message]:
        """Every message until the end of file, blocking."""
        while (batch := self.receive()) is not None:
            yield from batch


def pair() -> tuple[Channel, Channel]:
    """Two connected ends; neither is inherited by an exec unless it is passed on."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(first), Channel(second)


def from_fd(fd: int) -> Channel:
    """The end that was inherited as ``fd``."""
    end = socket.socket(fileno=fd)
    with contextlib.suppress(OSError):
        end.set_inheritable(False)
    return Channel(end)
