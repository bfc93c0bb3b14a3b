"""Where clients are awaited, if not where the program listens: ``tcp:host:port``, ``unix:path``, ``fd:N``.

The supervisor opens these sockets before anything else is started, so that a busy port is told at once, and keeps them
while tenants come and go, so that clients wait instead of being refused. The tenant makes them listen when it is ready.
Sockets of systemd's socket activation (``sd_listen_fds(3)``) are taken when none are named.
"""

import contextlib
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

from kvmserver.errors import StartError

BACKLOG = 4096
# The first descriptor that systemd hands over.
_FIRST_FD = 3
_FORMS = "tcp:host:port, unix:path or fd:N"
_ACTIVATION = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


@dataclass(frozen=True)
class TcpAddress:
    """``host`` is a name or a numeric address of either family; empty means all interfaces."""

    host: str
    port: int


@dataclass(frozen=True)
class UnixAddress:
    """A path in the file system."""

    path: str


@dataclass(frozen=True)
class Inherited:
    """A descriptor that whoever started kvmserver has opened."""

    fd: int


ListenAddress = TcpAddress | UnixAddress | Inherited


def parse(text: str) -> ListenAddress:
    """An address as it is written. Raises ValueError."""
    kind, _, rest = text.partition(":")
    if kind == "tcp":
        host, separator, port = rest.rpartition(":")
        if separator and port.isascii() and port.isdigit() and int(port) <= 65535:
            bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
            if ":" not in bare or bare != host:
                return TcpAddress("" if bare == "*" else bare, int(port))
    elif kind == "unix" and rest:
        # struct sockaddr_un has room for 108 bytes with the end.
        if len(os.fsencode(rest)) > 107:
            raise ValueError(f"{rest!r} is longer than a unix socket's path may be (107 bytes)")
        return UnixAddress(rest)
    elif kind == "fd" and rest.isascii() and rest.isdigit() and len(rest) <= 7:
        if int(rest) < _FIRST_FD:
            raise ValueError("descriptors 0, 1 and 2 are the program's standard streams")
        return Inherited(int(rest))
    raise ValueError(f"{text!r} is not one of {_FORMS}")


def activated(environment: MutableMapping[str, str], pid: int) -> tuple[str, ...]:
    """What systemd hands over, as addresses; the variables that say so are for nobody else and are removed."""
    values = {name: environment.pop(name, "") for name in _ACTIVATION}
    count = values["LISTEN_FDS"]
    if values["LISTEN_PID"] != str(pid) or not (count.isascii() and count.isdigit() and len(count) <= 4):
        return ()
    return tuple(f"fd:{_FIRST_FD + index}" for index in range(int(count)))


def open_sockets(addresses: Sequence[str], stack: contextlib.ExitStack) -> list[int]:
    """The descriptors of bound sockets; ``stack`` closes them, and removes what they leave. Raises StartError."""
    return [_open(text, parse(text), stack) for text in addresses]


def _open(text: str, address: ListenAddress, stack: contextlib.ExitStack) -> int:
    try:
        match address:
            case TcpAddress():
                return stack.enter_context(_bind_tcp(address)).fileno()
            case UnixAddress(path):
                return _bind_unix(path, stack)
            case Inherited(fd):
                return _check_inherited(fd)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(
            f"cannot listen on {text}: {reason}", "stop what uses the address, or choose another"
        ) from error


def _bind_tcp(address: TcpAddress) -> socket.socket:
    if not address.host:
        return _bound(socket.AF_INET6, ("::", address.port), v6_only=False)
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, name = found[0]
    return _bound(family, name, v6_only=True)


def _bound(family: int, name: tuple[object, ...], v6_only: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6_only))
        bound.bind(name)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(path: str, stack: contextlib.ExitStack) -> int:
    bound = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    _remove_stale(path)
    bound.bind(path)
    made = os.stat(path)
    stack.callback(_remove, path, made)
    return bound.fileno()


def _remove_stale(path: str) -> None:
    """A socket on which nobody listens any more is in the way; anything else is not ours to remove."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _remove(path: str, made: os.stat_result) -> None:
    """Remove the socket, unless another has taken its place."""
    with contextlib.suppress(OSError):
        now = os.stat(path)
        if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
            os.unlink(path)


def _check_inherited(fd: int) -> int:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise OSError(f"descriptor {fd} is no socket")
    with socket.socket(fileno=os.dup(fd)) as inherited:
        if inherited.type != socket.SOCK_STREAM:
            raise OSError(f"descriptor {fd} is no stream socket")
    return fd


def begin(fd: int) -> None:
    """Listen, where the socket does not yet. Raises StartError."""
    try:
        with socket.socket(fileno=os.dup(fd)) as bound:
            bound.listen(BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(f"cannot listen on descriptor {fd}: {reason}", "") from error
