"""Messages over one byte stream in each direction: one byte of kind, four of length (little endian), the payload."""

import json
import os
import struct
from enum import IntEnum
from typing import Any

HEADER = struct.Struct("<BI")
# Long enough for a full pipe, short enough that output and the shared directory take turns.
PAYLOAD_MAX = 1 << 16


class Kind(IntEnum):
    """What a message is; JSON, bytes, or nothing."""

    # From the machine: it is up (JSON: kernel, seconds since its start).
    HELLO = 1
    # To the machine: what to run (JSON: a Start's fields).
    START = 2
    # A piece of the shared directory's tar stream; an empty one ends it. Both ways.
    SHARE = 3
    # To the machine: a piece of standard input; an empty one ends it.
    INPUT = 4
    # To the machine: the terminal's size (JSON: rows, columns).
    SIZE = 5
    # From the machine: a piece of standard output, of standard error.
    OUTPUT = 6
    ERROR = 7
    # From the machine: the command has ended (JSON: status). Nothing follows.
    EXIT = 8


class BrokenStreamError(Exception):
    """What came is no message, or the other end is gone in the middle of one."""


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One message. Raises ValueError for a payload that is too long."""
    if len(payload) > PAYLOAD_MAX:
        raise ValueError(f"a payload of {len(payload)} bytes; at most {PAYLOAD_MAX} go into one message")
    return HEADER.pack(kind, len(payload)) + payload


def encode_json(kind: Kind, value: dict[str, Any]) -> bytes:
    """One message with a JSON object in it."""
    return encode(kind, json.dumps(value).encode())


class Decoder:
    """Bytes as they come, messages as they become whole."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """The messages that these bytes complete. Raises BrokenStreamError for what is none."""
        self._pending += data
        messages: list[tuple[Kind, bytes]] = []
        while len(self._pending) >= HEADER.size:
            number, length = HEADER.unpack_from(self._pending)
            if length > PAYLOAD_MAX or number not in iter(Kind):
                raise BrokenStreamError(f"not a message: kind {number}, {length} bytes")
            end = HEADER.size + length
            if len(self._pending) < end:
                break
            messages.append((Kind(number), bytes(self._pending[HEADER.size : end])))
            del self._pending[:end]
        return messages


def write_all(fd: int, data: bytes) -> None:
    """Write everything, however little the other end takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
