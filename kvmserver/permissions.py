"""What the guest may touch: the words of ``--allow-*``, ``--volume`` and ``--env`` as typed data.

Deny by default. Everything here is a pure function of its arguments: the environment, the current directory and
name resolution are passed in. Enforcement is the data plane's (vmm/src/linux), which gets absolute paths and
numeric addresses only.

A grant is ``False`` (nothing), ``True`` (everything) or a tuple of words.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Grant = bool | tuple[str, ...]
Resolver = Callable[[str], list[str]]

# What a program needs to start at all, with what it gets where the host has none set.
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
}

_PORT = re.compile(r"[0-9]{1,5}")
# RFC 952/1123 labels plus the underscore that container networks use in names.
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)


@dataclass(frozen=True)
class NetRule:
    """One allowed peer or listening address; ``None`` means any. ``address`` is numeric, of either family."""

    address: str | None
    port: int | None


@dataclass(frozen=True)
class HostRule:
    """A rule as written: ``host`` may still be a name. ``None`` means any."""

    host: str | None
    port: int | None


@dataclass(frozen=True)
class Volume:
    """The host's ``host`` appears in the guest as ``guest``; read-only unless ``write``."""

    host: str
    guest: str
    write: bool


@dataclass(frozen=True)
class Permissions:
    """Everything that the data plane is told about rights, resolved."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    volumes: tuple[Volume, ...]
    connect: tuple[NetRule, ...]
    listen: tuple[NetRule, ...]
    environment: tuple[tuple[str, str], ...]


EVERYTHING_ON_THE_NET = (NetRule(None, None),)


def split_words(text: str) -> tuple[str, ...]:
    """The words of ``--allow-read=a,b``. An empty value or word is an error: it must never mean everything."""
    words = tuple(text.split(","))
    if not all(word.strip() for word in words):
        raise ValueError("the list is empty or has an empty element (leave out '=' to allow everything)")
    return words


def absolute_path(path: str, directory: str) -> str:
    """``path`` as an absolute path without ``.``, ``..``, doubled or trailing slashes; ``directory`` is absolute."""
    if not path or "\0" in path:
        raise ValueError("a path may not be empty or contain a NUL byte")
    # normpath keeps two leading slashes, which POSIX reserves and Linux treats as one.
    return "/" + os.path.normpath(os.path.join(directory, path)).lstrip("/")


def path_grant(grant: Grant, directory: str) -> tuple[str, ...]:
    """Absolute granted paths, without duplicates, in the order in which they were given."""
    if isinstance(grant, bool):
        return ("/",) if grant else ()
    return tuple(dict.fromkeys(absolute_path(path, directory) for path in grant))


def parse_volume(text: str) -> Volume:
    """``host:guest[:r|rw]``; ``host`` stays as written."""
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"{text!r} is not host:guest or host:guest:rw")
    mode = parts[2] if len(parts) == 3 else "r"
    if mode not in ("r", "rw"):
        raise ValueError(f"{mode!r} in {text!r} is not r or rw")
    return check_volume(Volume(parts[0], parts[1], mode == "rw"))


def check_volume(volume: Volume) -> Volume:
    """The volume itself, or ValueError if one of its paths can never work."""
    if not volume.host:
        raise ValueError("a volume needs a host path before the colon")
    if not volume.guest.startswith("/"):
        raise ValueError(f"the guest path {volume.guest!r} of a volume must be absolute")
    if "\0" in volume.host + volume.guest:
        raise ValueError("a path may not contain a NUL byte")
    return volume


def resolve_volumes(volumes: Iterable[Volume], directory: str) -> tuple[Volume, ...]:
    """Volumes with absolute, normalised paths. Two for one guest path are an error, not an overlay."""
    resolved: dict[str, Volume] = {}
    for volume in volumes:
        guest = absolute_path(volume.guest, "/")
        if guest in resolved:
            raise ValueError(f"two volumes for the guest path {guest!r}")
        resolved[guest] = Volume(absolute_path(volume.host, directory), guest, volume.write)
    return tuple(resolved.values())


def parse_host_rule(text: str) -> HostRule:
    """``host``, ``host:port``, ``:port``, ``[v6]``, ``[v6]:port`` or a bare v6 address; ports are 1 to 65535."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [address] or [address]:port")
        return HostRule(_ipv6(address, text), _port(rest[1:], text) if rest else None)
    if text.count(":") > 1:
        return HostRule(_ipv6(text, text), None)
    host, colon, port = text.partition(":")
    if not host and not colon:
        raise ValueError("an address may not be empty")
    if host and not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{host!r} in {text!r} is not a host name or an address")
    return HostRule(host or None, _port(port, text) if colon else None)


def resolve_with_system(host: str) -> list[str]:
    """All addresses of ``host`` as the system's resolver knows them. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def net_grant(grant: Grant, resolve: Resolver) -> tuple[NetRule, ...]:
    """Numeric rules; a name becomes one rule for each of its addresses, now and for good."""
    if isinstance(grant, bool):
        return EVERYTHING_ON_THE_NET if grant else ()
    rules: dict[NetRule, None] = {}
    for word in grant:
        rule = parse_host_rule(word)
        for address in _addresses(rule.host, resolve):
            rules[NetRule(address, rule.port)] = None
    return tuple(rules)


def parse_variable(text: str) -> tuple[str, str]:
    """``K=V``; the value may be empty and may contain ``=``."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    if "\0" in text:
        raise ValueError(f"{name!r} contains a NUL byte")
    return name, value


def check_variable_pattern(pattern: str) -> str:
    """``NAME`` or ``PREFIX*``; the pattern itself, or ValueError."""
    name = pattern.removesuffix("*")
    if "*" in name or "=" in name or "\0" in name or not pattern:
        raise ValueError(f"{pattern!r} is not NAME or PREFIX*")
    return pattern


def guest_environment(
    host: Mapping[str, str], grant: Grant, extra: Iterable[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """The guest's variables: PATH, HOME and LANG, then those that ``grant`` allows, then ``extra``; later wins.

    A granted name that the host has not set is simply absent.
    """
    variables = {name: host.get(name, default) for name, default in BASE_ENVIRONMENT.items()}
    patterns = ("*",) if grant is True else grant or ()
    variables.update((name, value) for name, value in host.items() if any(_matches(name, p) for p in patterns))
    variables.update(extra)
    return tuple(variables.items())


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _addresses(host: str | None, resolve: Resolver) -> list[str | None]:
    if host is None:
        return [None]
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    try:
        found = resolve(host)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"cannot resolve host {host!r}: {_reason(error)}") from error
    # A scope ("%eth0") belongs to an interface of the host, which a guest does not have.
    return [*dict.fromkeys(address.partition("%")[0] for address in found)]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _ipv6(address: str, text: str) -> str:
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        raise ValueError(f"{address!r} in {text!r} is not an IPv6 address") from None
    if parsed.scope_id is not None:
        raise ValueError(f"{text!r} names an interface, which a rule cannot")
    return str(parsed)


def _port(port: str, text: str) -> int:
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{port!r} in {text!r} is not a port from 1 to 65535")
    return int(port)
