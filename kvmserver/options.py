"""The option table: the one place that knows every option's name, type, default, unit, help and group.

The click options, the keys of kvmserver.toml, ``--print-config`` and docs/configuration.md are all made from the
fields of ``Options``. A field's name with hyphens is both the long option and the key in the file. The values that
the validators take are those of TOML; the command line hands over the same types (see ``from_command_line``).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict

from kvmserver import listen, permissions, units
from kvmserver.permissions import Grant, Volume
from kvmserver.warmup import WarmupRequest, parse_request

# What a bare ``--allow-read`` is turned into before click sees it: no argument of a process can contain a NUL byte.
BARE = "\0"

PROGRAM, PERMISSIONS, LIMITS, SERVING, OBSERVING = "Program", "Permissions", "Limits", "Serving", "Observing"
CLIENTS = "Clients"
STORAGE = "Storage"
GROUPS = (PROGRAM, PERMISSIONS, SERVING, CLIENTS, LIMITS, OBSERVING)
PROTOCOLS = ("http", "tcp")


class Kind(Enum):
    """How an option is written. The value is the word for it in the documentation."""

    FLAG = "flag"
    COUNT = "number"
    DURATION = "duration"
    SIZE = "size"
    TEXT = "text"
    LIST = "list"
    GRANT = "grant"


@dataclass(frozen=True)
class Opt:
    """One row of the table, apart from the type and the default, which the field itself carries."""

    kind: Kind
    group: str
    help: str
    short: str = ""
    metavar: str = ""


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a text that is not empty and has no NUL byte")
    return value


def _number(parse: Callable[[str], int], value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number")
    # repr() of a float may use an exponent, which a quantity does not have.
    return parse(f"{value:.9f}" if isinstance(value, float) else str(value))


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _bounded(parse: Callable[[str], int], show: Callable[[int], str], low: int, high: int) -> BeforeValidator:
    def validate(value: object) -> int:
        number = _number(parse, value)
        if not low <= number <= high:
            raise ValueError(f"{value!s} is out of range: {show(low)} to {show(high)}")
        return number

    return BeforeValidator(validate)


def _counts(low: int, high: int) -> BeforeValidator:
    return _bounded(_count, str, low, high)


def _durations(low: str, high: str) -> BeforeValidator:
    parse = units.parse_duration
    return _bounded(parse, units.format_duration, parse(low), parse(high))


def _sizes(low: str, high: str) -> BeforeValidator:
    return _bounded(units.parse_size, units.format_size, units.parse_size(low), units.parse_size(high))


def _words(value: object) -> tuple[object, ...]:
    if isinstance(value, list | tuple):
        return tuple(value)
    raise ValueError("must be a list")


def _grant(check: Callable[[str], object]) -> BeforeValidator:
    def validate(value: object) -> Grant:
        if isinstance(value, bool):
            return value
        words = [value] if isinstance(value, str) else _words(value)
        for word in words:
            check(_text(word))
        # An empty list in a file grants nothing, as it says.
        return cast("tuple[str, ...]", tuple(words)) or False

    return BeforeValidator(validate)


def _variables(value: object) -> tuple[tuple[str, str], ...]:
    if isinstance(value, Mapping):
        return tuple(permissions.parse_variable(f"{name}={_plain(text)}") for name, text in value.items())
    return tuple(permissions.parse_variable(_text(word)) for word in _words(value))


def _plain(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("the value of a variable must be a text")
    return value


def _volumes(value: object) -> tuple[Volume, ...]:
    return tuple(_volume(item) for item in _words(value))


def _volume(item: object) -> Volume:
    if not isinstance(item, Mapping):
        return permissions.parse_volume(_text(item))
    unknown = set(item) - {"host", "guest", "write"}
    if unknown or "host" not in item or "guest" not in item:
        raise ValueError("a volume has the keys host, guest and write")
    return permissions.check_volume(Volume(_text(item["host"]), _text(item["guest"]), _flag(item.get("write", False))))


def _warmup_requests(value: object) -> tuple[WarmupRequest, ...]:
    return tuple(i if isinstance(i, WarmupRequest) else parse_request(_text(i)) for i in _words(value))


def _listen_addresses(value: object) -> tuple[str, ...]:
    words = tuple(_text(word) for word in _words(value))
    for word in words:
        listen.parse(word)
    return words


def _protocol(value: object) -> str:
    if value not in PROTOCOLS:
        raise ValueError(f"{value!r} is not one of {', '.join(PROTOCOLS)}")
    return str(value)


Flag = Annotated[bool, BeforeValidator(_flag)]
PathGrant = Annotated[Grant, _grant(lambda path: permissions.absolute_path(path, "/"))]
NameGrant = Annotated[Grant, _grant(permissions.check_variable_pattern)]
NetGrant = Annotated[Grant, _grant(permissions.parse_host_rule)]
NET_FORMS = "host, host:port, :port, [v6] or [v6]:port"


class Options(BaseModel):
    """The effective value of every option. Durations are nanoseconds, sizes bytes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, alias_generator=lambda name: name.replace("_", "-")
    )

    cwd: Annotated[
        str, BeforeValidator(_text), Opt(Kind.TEXT, PROGRAM, "Working directory of the program.", metavar="DIR")
    ] = "."
    env: Annotated[
        tuple[tuple[str, str], ...],
        BeforeValidator(_variables),
        Opt(Kind.LIST, PROGRAM, "Set a variable for the program; later wins (repeatable).", metavar="NAME=VALUE"),
    ] = ()
    fast_path: Annotated[
        Flag,
        Opt(Kind.FLAG, PROGRAM, "Answer inside the VM what a request asks of its connection; else every call exits."),
    ] = True

    allow_all: Annotated[Flag, Opt(Kind.FLAG, PERMISSIONS, "Allow everything; excludes the other --allow options.")] = (
        False
    )
    allow_read: Annotated[
        PathGrant,
        Opt(Kind.GRANT, PERMISSIONS, "Allow reading below these paths (bare: everywhere).", metavar="PATH,.."),
    ] = False
    allow_write: Annotated[
        PathGrant,
        Opt(Kind.GRANT, PERMISSIONS, "Allow writing below these paths (bare: everywhere).", metavar="PATH,.."),
    ] = False
    allow_env: Annotated[
        NameGrant,
        Opt(Kind.GRANT, PERMISSIONS, "Pass these variables on: NAME or PREFIX* (bare: all).", metavar="NAME,.."),
    ] = False
    allow_net: Annotated[
        NetGrant,
        Opt(Kind.GRANT, PERMISSIONS, f"Allow connecting and listening: {NET_FORMS} (bare: any).", metavar="HOST,.."),
    ] = False
    allow_connect: Annotated[
        NetGrant, Opt(Kind.GRANT, PERMISSIONS, "Allow connecting only, in addition to --allow-net.", metavar="HOST,..")
    ] = False
    allow_listen: Annotated[
        NetGrant, Opt(Kind.GRANT, PERMISSIONS, "Allow listening only, in addition to --allow-net.", metavar="HOST,..")
    ] = False
    volume: Annotated[
        tuple[Volume, ...],
        BeforeValidator(_volumes),
        Opt(
            Kind.LIST,
            PERMISSIONS,
            "Show a path of the host at a path of the guest, read-only unless rw (repeatable).",
            metavar="HOST:GUEST[:r|rw]",
        ),
    ] = ()

    ephemeral: Annotated[Flag, Opt(Kind.FLAG, SERVING, "Reset the VM after every request.", short="e")] = False
    threads: Annotated[
        int,
        _counts(0, 1024),
        Opt(Kind.COUNT, SERVING, "Request VMs; 0 means one for each CPU.", short="t", metavar="N"),
    ] = 1
    warmup: Annotated[
        int,
        _counts(0, 10_000_000),
        Opt(Kind.COUNT, SERVING, "Warm-up requests before the snapshot.", short="w", metavar="N"),
    ] = 0
    warmup_request: Annotated[
        tuple[WarmupRequest, ...],
        BeforeValidator(_warmup_requests),
        Opt(
            Kind.LIST,
            SERVING,
            "A warm-up request, such as 'POST /render'; taken in turn, once each without --warmup (repeatable).",
            metavar="'METHOD /PATH'",
        ),
    ] = ()
    hot_pages: Annotated[
        int,
        _counts(0, 1 << 24),
        Opt(Kind.COUNT, SERVING, "Pages a VM keeps mapped and copies back at a reset.", metavar="N"),
    ] = 1024
    vms_per_process: Annotated[
        int,
        _counts(1, 256),
        Opt(
            Kind.COUNT,
            SERVING,
            "Request VMs in one worker process; all are in one where they share a storage program.",
            metavar="N",
        ),
    ] = 32

    busy_poll: Annotated[
        int,
        _durations("0s", "1s"),
        Opt(
            Kind.DURATION,
            SERVING,
            "Look this long for the next request before going to sleep, where the last one came as soon; 0s: never.",
            metavar="TIME",
        ),
    ] = units.parse_duration("100us")

    listen: Annotated[
        tuple[str, ...],
        BeforeValidator(_listen_addresses),
        Opt(
            Kind.LIST,
            CLIENTS,
            "Listen here instead of where the program does: tcp:host:port, unix:path or fd:N (repeatable).",
            metavar="ADDRESS",
        ),
    ] = ()
    protocol: Annotated[
        str,
        BeforeValidator(_protocol),
        Opt(
            Kind.TEXT,
            CLIENTS,
            "http: a fresh VM for each request; tcp: one for each connection, bytes passed through.",
            metavar="http|tcp",
        ),
    ] = "http"
    proxy_protocol: Annotated[
        Flag, Opt(Kind.FLAG, CLIENTS, "Expect a PROXY protocol header (version 1 or 2) on every connection.")
    ] = False
    proxy_headers: Annotated[
        Flag, Opt(Kind.FLAG, CLIENTS, "Append the client's address to Forwarded and X-Forwarded-For.")
    ] = False
    request_buffer: Annotated[
        int,
        _sizes("4KiB", "1GiB"),
        Opt(Kind.SIZE, CLIENTS, "Body that is here before a request gets a VM; more is streamed.", metavar="SIZE"),
    ] = units.parse_size("1MiB")
    response_buffer: Annotated[
        int,
        _sizes("4KiB", "1GiB"),
        Opt(Kind.SIZE, CLIENTS, "Response that may wait for its client; then the VM waits, too.", metavar="SIZE"),
    ] = units.parse_size("16MiB")
    connection_memory: Annotated[
        int,
        _sizes("1MiB", "1TiB"),
        Opt(
            Kind.SIZE,
            CLIENTS,
            "What waits in a worker for slow clients; beyond it those that wait longest are closed.",
            metavar="SIZE",
        ),
    ] = units.parse_size("1GiB")
    max_header_size: Annotated[
        int,
        _sizes("1KiB", "1MiB"),
        Opt(Kind.SIZE, CLIENTS, "Longest head of a request; then the client gets 431.", metavar="SIZE"),
    ] = units.parse_size("64KiB")
    max_body_size: Annotated[
        int,
        _sizes("0", "16TiB"),
        Opt(Kind.SIZE, CLIENTS, "Longest body of a request; then the client gets 413.", metavar="SIZE"),
    ] = units.parse_size("1GiB")
    header_timeout: Annotated[
        int,
        _durations("1ms", "24h"),
        Opt(Kind.DURATION, CLIENTS, "Time for a request's head to arrive; then the client gets 408.", metavar="TIME"),
    ] = units.parse_duration("10s")
    body_timeout: Annotated[
        int,
        _durations("1ms", "24h"),
        Opt(
            Kind.DURATION,
            CLIENTS,
            "Time for the first --request-buffer of its body, later time without a byte; then the client gets 408.",
            metavar="TIME",
        ),
    ] = units.parse_duration("30s")
    idle_timeout: Annotated[
        int,
        _durations("1ms", "24h"),
        Opt(Kind.DURATION, CLIENTS, "Time that a connection is kept between requests.", metavar="TIME"),
    ] = units.parse_duration("60s")
    write_timeout: Annotated[
        int,
        _durations("1ms", "24h"),
        Opt(Kind.DURATION, CLIENTS, "Time in which a client has to take something of its response.", metavar="TIME"),
    ] = units.parse_duration("30s")
    queue_time: Annotated[
        int,
        _durations("1ms", "24h"),
        Opt(Kind.DURATION, CLIENTS, "Time that a request waits for a VM; then the client gets 503.", metavar="TIME"),
    ] = units.parse_duration("10s")

    max_boot_time: Annotated[
        int,
        _durations("1ms", "24h"),
        Opt(
            Kind.DURATION,
            LIMITS,
            "Time for a server to start listening, and for a storage program to wait for its first call.",
            metavar="TIME",
        ),
    ] = units.parse_duration("20s")
    max_request_time: Annotated[
        int,
        _durations("1ms", "24h"),
        Opt(Kind.DURATION, LIMITS, "Time for one request; then the client gets 504.", metavar="TIME"),
    ] = units.parse_duration("8s")
    max_storage_time: Annotated[
        int,
        _durations("1ms", "24h"),
        Opt(Kind.DURATION, LIMITS, "Longest time of one call to the storage program.", metavar="TIME"),
    ] = units.parse_duration("8s")
    max_main_memory: Annotated[
        int,
        _sizes("1MiB", "16TiB"),
        Opt(Kind.SIZE, LIMITS, "Memory the program may use before its snapshot.", metavar="SIZE"),
    ] = units.parse_size("8192MiB")
    max_address_space: Annotated[
        int,
        _sizes("64MiB", "64TiB"),
        Opt(Kind.SIZE, LIMITS, "Address space of the guest (reserved, not used).", metavar="SIZE"),
    ] = units.parse_size("120GiB")
    max_request_memory: Annotated[
        int,
        _sizes("1MiB", "1TiB"),
        Opt(Kind.SIZE, LIMITS, "Memory a request may write; then the client gets 502.", metavar="SIZE"),
    ] = units.parse_size("128MiB")
    limit_request_memory: Annotated[
        int,
        _sizes("0", "1TiB"),
        Opt(Kind.SIZE, LIMITS, "Written memory above which a reset gives it back to the system.", metavar="SIZE"),
    ] = units.parse_size("128MiB")

    verbose: Annotated[Flag, Opt(Kind.FLAG, OBSERVING, "Log what the server does.", short="v")] = False
    verbose_syscalls: Annotated[Flag, Opt(Kind.FLAG, OBSERVING, "Log every system call of the program.")] = False
    server_timing: Annotated[
        Flag, Opt(Kind.FLAG, OBSERVING, "Add Server-Timing, kvmserver-vm and kvmserver-counters to responses.")
    ] = False
    verify_reset: Annotated[
        Flag, Opt(Kind.FLAG, OBSERVING, "Compare the whole VM with its snapshot after every reset (slow).")
    ] = False


@dataclass(frozen=True)
class Row:
    """One option as the generators of click options and documentation see it."""

    field: str
    name: str
    default: object
    opt: Opt

    @property
    def flag_name(self) -> str:
        """The long option."""
        return f"--{self.name}"


def _row(field: str) -> Row:
    info = Options.model_fields[field]
    opt = next(item for item in info.metadata if isinstance(item, Opt))
    return Row(field, field.replace("_", "-"), info.default, opt)


ROWS = tuple(_row(field) for field in Options.model_fields)
ROW_OF_NAME = {row.name: row for row in ROWS}

# What may be given for one program alone, after its command or in its table, and what only the storage program has.
PROGRAM_ROWS = tuple(row for row in ROWS if row.opt.group in (PROGRAM, PERMISSIONS))
ONE_TO_ONE = Row(
    "one_to_one", "1-to-1", False, Opt(Kind.FLAG, STORAGE, "Give each request VM a storage VM of its own.")
)


def from_command_line(row: Row, words: bool | Sequence[str]) -> object:
    """The value, in TOML's types, of what click collected for an option. Raises ValueError."""
    if isinstance(words, bool):
        return words
    if row.opt.kind is Kind.GRANT:
        if BARE in words:
            return True
        return [word for text in words for word in permissions.split_words(text)]
    return list(words) if row.opt.kind is Kind.LIST else words[-1]


def to_toml(row: Row, value: object) -> str:
    """The value as kvmserver.toml would have it, on one line."""
    if row.opt.kind is Kind.DURATION and isinstance(value, int):
        return _quote(units.format_duration(value))
    if row.opt.kind is Kind.SIZE and isinstance(value, int):
        return _quote(units.format_size(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_item(item) for item in value)}]"
    return str(value) if isinstance(value, int) else _quote(str(value))


def _item(item: object) -> str:
    if isinstance(item, Volume):
        write = "true" if item.write else "false"
        return f"{{ host = {_quote(item.host)}, guest = {_quote(item.guest)}, write = {write} }}"
    if isinstance(item, WarmupRequest):
        return _quote(item.label)
    return _quote("=".join(item) if isinstance(item, tuple) else str(item))


def _quote(text: str) -> str:
    # A TOML basic string is a JSON string, except that DEL has to be escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
