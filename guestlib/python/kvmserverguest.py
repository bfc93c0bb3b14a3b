# SPDX-License-Identifier: Apache-2.0 OR MIT
"""What a program inside kvmserver can ask of it: calls from request VMs to the storage program.

Copy this file, or put its directory on PYTHONPATH. In a request VM::

    answer = kvmserverguest.call("count")

and in the storage program::

    kvmserverguest.serve(lambda request: str(next(numbers)))

The meaning is that of kvmserverguest.h. Every failure is an OSError with the errno listed there, outside kvmserver
it is NotAvailableError. The GIL is released while a call or a wait lasts.

``call`` and ``serve`` exchange *messages*: a request is what stands in the buffer before the zero bytes at its end, the
result is the length of the answer. ``remote_resume`` and ``wait_paused`` exchange the bare buffer.
"""

import ctypes
import errno
import os
import traceback
from collections.abc import Callable
from typing import NoReturn

BUFFER_MAX = 16 << 20
"""Longest buffer of a call, bytes."""

_MEANINGS = {
    errno.EINVAL: "bad buffer or length",
    errno.ENOSYS: "there is no storage program",
    errno.EDEADLK: "the storage program cannot call itself",
    errno.ETIMEDOUT: "the storage program did not answer in time",
    errno.EPIPE: "the storage program died in this call",
    errno.EAGAIN: "the storage program is being started again",
    errno.EPERM: "only the storage program can wait for calls",
    errno.EIO: "the storage program failed to answer this request",
    errno.EMSGSIZE: "the answer is longer than the capacity of the call",
    errno.EBADMSG: "the storage program's result is no length of an answer",
    errno.ENOMEM: "no shared memory is left, or there is no storage program",
}


class NotAvailableError(OSError):
    """The program does not run inside kvmserver."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSYS, "not inside kvmserver")


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libkvmserverguest.so")
    except OSError:
        return None
    library.kvmserverguest_remote_resume.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]
    library.kvmserverguest_remote_resume.restype = ctypes.c_ssize_t
    library.kvmserverguest_storage_wait_paused.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_ssize_t]
    library.kvmserverguest_storage_wait_paused.restype = ctypes.c_ssize_t
    library.kvmserverguest_shared_buffer.argtypes = [ctypes.c_size_t]
    library.kvmserverguest_shared_buffer.restype = ctypes.c_void_p
    return library


_library = _load()


def available() -> int:
    """The version of the host's interface (at least 1), or 0 outside kvmserver."""
    return _library.kvmserverguest_available() if _library else 0


def call(request: bytes | str, capacity: int = 4096) -> bytes:
    """In a request VM: what the storage program's ``serve`` answers to a message.

    ``capacity`` is the longest answer there can be, in bytes; the whole request VM stands still meanwhile. Raises
    ValueError for a request that ends in a zero byte, and OSError: EMSGSIZE where the answer is longer, EIO where the
    handler failed, and what ``remote_resume`` raises.
    """
    message = request.encode() if isinstance(request, str) else request
    if message.endswith(b"\0"):
        raise ValueError("a request cannot end in a zero byte")
    buffer = bytearray(max(len(message), capacity))
    buffer[: len(message)] = message
    length = remote_resume(buffer)
    if length > len(buffer):
        raise _error(errno.EBADMSG)
    return bytes(buffer[:length])


def remote_resume(buffer: bytearray | memoryview) -> int:
    """In a request VM: let the storage program see and change the buffer, and return its result.

    After an OSError the buffer's content is unspecified. A buffer that cannot be written is a TypeError.
    """
    library = _inside()
    with memoryview(buffer) as view:
        memory = (ctypes.c_char * view.nbytes).from_buffer(view)
        result = library.kvmserverguest_remote_resume(memory, view.nbytes)
        del memory
    return _checked(result)


def serve(handler: Callable[[bytes], bytes | str]) -> NoReturn:
    """In the storage program: answer every message with what ``handler`` returns, one at a time, for ever.

    An exception of the handler is printed and given to the caller as EIO; the program goes on. Raises OSError where
    there is nothing to wait for: EPERM in a request VM, NotAvailableError outside kvmserver.
    """
    result = 0
    while True:
        with wait_paused(result) as buffer:
            result = _answer(handler, buffer)


def wait_paused(result: int = 0) -> memoryview:
    """In the storage program: give ``result`` to the caller that waits, and return the buffer of the next call.

    The buffer can be read and written until the next wait, and must not be touched later: release it. The first
    ``result`` is ignored. With asyncio: ``await asyncio.to_thread(wait_paused, result)``.
    """
    pointer = ctypes.c_void_p()
    length = _checked(_inside().kvmserverguest_storage_wait_paused(ctypes.byref(pointer), result))
    return _view(pointer.value, length)


def shared_buffer(length: int) -> memoryview:
    """In a request VM: zeroed memory that the storage program can reach too, so that calls with it copy nothing.

    The storage program may read and write it at any time. Raises OSError with ENOMEM where none is left.
    """
    address = _inside().kvmserverguest_shared_buffer(length)
    if address is None:
        raise _error(errno.ENOMEM)
    return _view(address, length)


def _inside() -> ctypes.CDLL:
    if _library is None or not available():
        raise NotAvailableError
    return _library


def _checked(result: int) -> int:
    if result < 0:
        raise _error(-result)
    return result


def _error(number: int) -> OSError:
    return OSError(number, _MEANINGS.get(number) or os.strerror(number))


def _view(address: int | None, length: int) -> memoryview:
    memory = (ctypes.c_char * length).from_address(address) if address and length else (ctypes.c_char * 0)()
    return memoryview(memory).cast("B")


def _answer(handler: Callable[[bytes], bytes | str], buffer: memoryview) -> int:
    try:
        answer = handler(bytes(buffer).rstrip(b"\0"))
        message = answer.encode() if isinstance(answer, str) else memoryview(answer).cast("B")
    except Exception:
        traceback.print_exc()
        return -errno.EIO
    if len(message) > len(buffer):
        return -errno.EMSGSIZE
    buffer[: len(message)] = message
    return len(message)
