"""From the effective configuration to the message that starts a tenant: plain data, everything resolved.

The message is the whole truth for the tenant: it looks at no environment, no file and no resolver of its own.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvmserver import permissions
from kvmserver.config import Config, ProgramConfig, Role
from kvmserver.errors import ConfigError, KvmserverError
from kvmserver.options import Options
from kvmserver.permissions import NetRule, Permissions, Resolver
from kvmserver.program import Program, find_program

DRAIN_TIME_NS = 10_000_000_000

# How messages name a program that cannot be found.
_WHAT: dict[Role, str] = {"storage": "the storage program ", "run": ""}


@dataclass(frozen=True)
class Resolved:
    """A configured program whose file was found and whose rights are numbers and absolute paths."""

    config: ProgramConfig
    program: Program
    granted: Permissions
    working_directory: str


def find_programs(config: Config, search_path: str, directory: str) -> list[Program]:
    """The file of every program of the configuration, in its order. Raises KvmserverError."""
    return [find_program(p.program, search_path, directory, _WHAT[p.role]) for p in config.programs]


def resolve(
    config: Config,
    files: Sequence[Program],
    directory: str,
    environment: Mapping[str, str],
    resolver: Resolver,
) -> tuple[Resolved, ...]:
    """Every program of the configuration with its rights, in its order. Raises ConfigError with all mistakes."""
    problems: list[str] = []
    granted = []
    for program in config.programs:
        try:
            granted.append(resolve_permissions(program, directory, environment, resolver))
        except ConfigError as error:
            problems += error.problems
    if problems:
        # Both programs may have inherited the same mistake.
        raise ConfigError([*dict.fromkeys(problems)])
    return tuple(
        Resolved(program, file, rights, working_directory(program, directory, rights))
        for program, file, rights in zip(config.programs, files, granted, strict=True)
    )


def resolve_permissions(
    program: ProgramConfig, directory: str, environment: Mapping[str, str], resolver: Resolver
) -> Permissions:
    """The program's grants with absolute paths and numeric addresses. Raises ConfigError with all mistakes."""
    options = program.options
    everything = options.allow_all
    problems: list[str] = []

    def net(name: str, grant: permissions.Grant) -> tuple[NetRule, ...]:
        try:
            return permissions.net_grant(grant, resolver)
        except ValueError as error:
            problems.append(f"{program.label(name)}: {error}")
            return ()

    both = net("allow-net", everything or options.allow_net)
    connect, listen = net("allow-connect", options.allow_connect), net("allow-listen", options.allow_listen)
    label = program.label("volume")
    try:
        volumes = permissions.resolve_volumes(options.volume, directory)
    except ValueError as error:
        problems.append(f"{label}: {error}")
        volumes = ()
    problems += [f"{label}: {v.host!r} does not exist" for v in volumes if not os.path.exists(v.host)]
    if problems:
        raise ConfigError(problems)
    return Permissions(
        read=permissions.path_grant(everything or options.allow_read, directory),
        write=permissions.path_grant(everything or options.allow_write, directory),
        volumes=volumes,
        connect=_union(both, connect),
        listen=_union(both, listen),
        environment=permissions.guest_environment(environment, everything or options.allow_env, options.env),
    )


def working_directory(program: ProgramConfig, directory: str, granted: Permissions) -> str:
    """The guest's working directory, absolute; it exists on the host or lies in a volume. Raises ConfigError."""
    path = permissions.absolute_path(program.options.cwd, directory)
    in_volume = any(path == v.guest or path.startswith(v.guest.rstrip("/") + "/") for v in granted.volumes)
    if not in_volume and not os.path.isdir(path):
        raise ConfigError([f"{program.label('cwd')}: {path!r} is not a directory"])
    return path


def sandbox_config(options: Options, resolved: Resolved, gate: Mapping[str, Any] | None) -> dict[str, Any]:
    """The SandboxConfig of vmm/src/config.rs. ``gate`` is the program's end of the calls to the storage program."""
    granted = resolved.granted
    return {
        "program": resolved.program.path,
        "name": resolved.program.name,
        "arguments": list(resolved.config.arguments),
        "working_directory": resolved.working_directory,
        "environment": [list(variable) for variable in granted.environment],
        "read": list(granted.read),
        "write": list(granted.write),
        "volumes": [asdict(volume) for volume in granted.volumes],
        "connect": [asdict(rule) for rule in granted.connect],
        "listen": [asdict(rule) for rule in granted.listen],
        "max_main_memory": options.max_main_memory,
        "max_address_space": options.max_address_space,
        "trace_system_calls": options.verbose_syscalls,
        "verbose": options.verbose,
        "fast_path": resolved.config.options.fast_path,
        "gate": gate,
    }


def storage_config(config: Config, storage: Resolved) -> dict[str, Any]:
    """What the data plane needs to start the storage program, and its label."""
    one_to_one = storage.config.one_to_one
    gate = {"role": "storage", "lanes": 1 if one_to_one else config.threads}
    return {
        "sandbox": _require_utf8(sandbox_config(config.options, storage, gate)),
        "max_call_time_ns": config.options.max_storage_time,
        "boot_time_ns": config.options.max_boot_time,
        "one_to_one": one_to_one,
        "program": storage.program.label,
    }


def serve_config(options: Options) -> dict[str, Any]:
    """The ServeConfig of vmm/src/config.rs without what differs between workers."""
    return {
        "ephemeral": options.ephemeral,
        "verify_reset": options.verify_reset,
        "max_request_time_ns": options.max_request_time,
        "max_request_memory": options.max_request_memory,
        "limit_request_memory": options.limit_request_memory,
        "hot_pages": options.hot_pages,
        "busy_poll_ns": options.busy_poll,
        "drain_time_ns": DRAIN_TIME_NS,
        "clients": client_config(options),
    }


def client_config(options: Options) -> dict[str, Any]:
    """The ClientConfig of vmm/src/config.rs."""
    return {
        "protocol": options.protocol,
        "proxy_protocol": options.proxy_protocol,
        "proxy_headers": options.proxy_headers,
        "server_timing": options.server_timing,
        "request_buffer": options.request_buffer,
        "response_buffer": options.response_buffer,
        "connection_memory": options.connection_memory,
        "max_header_size": options.max_header_size,
        "max_body_size": options.max_body_size,
        "header_timeout_ns": options.header_timeout,
        "body_timeout_ns": options.body_timeout,
        "idle_timeout_ns": options.idle_timeout,
        "write_timeout_ns": options.write_timeout,
        "queue_time_ns": options.queue_time,
    }


def start_message(config: Config, resolved: Sequence[Resolved], listen_fds: Sequence[int] = ()) -> dict[str, Any]:
    """What the tenant is told first. Raises KvmserverError for text that is not UTF-8, which JSON cannot carry.

    ``listen_fds`` are the sockets to listen on in place of the program's own; the tenant inherits them.
    """
    options = config.options
    run = next(item for item in resolved if item.config.role == "run")
    storage = next((item for item in resolved if item.config.role == "storage"), None)
    return {
        "do": "start",
        "sandbox": _require_utf8(sandbox_config(options, run, {"role": "caller"} if storage else None)),
        "storage": storage_config(config, storage) if storage else None,
        "serve": serve_config(options),
        "program": run.program.label,
        "threads": config.threads,
        "vms_per_process": options.vms_per_process,
        "listen_fds": list(listen_fds),
        "server_expected": config.server_expected,
        "boot_time_ns": options.max_boot_time if config.server_expected else 0,
        "request_time_ns": options.max_request_time,
        "warmup": {"count": config.warmup_count, "requests": [asdict(r) for r in config.warmup_requests]},
    }


def without_undecodable(environment: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The host's variables that are valid UTF-8, and the names of the others, which no guest can be given."""
    good = {name: value for name, value in environment.items() if _is_utf8(name + value)}
    return good, tuple(name for name in environment if name not in good)


def _require_utf8(sandbox: dict[str, Any]) -> dict[str, Any]:
    words = [sandbox["program"], sandbox["name"], sandbox["working_directory"], *sandbox["arguments"], *sandbox["read"]]
    words += [*sandbox["write"], *(word for pair in sandbox["environment"] for word in pair)]
    words += [word for volume in sandbox["volumes"] for word in (volume["host"], volume["guest"])]
    for word in words:
        if not _is_utf8(word):
            raise KvmserverError(f"{word!a} is not valid UTF-8", exit_code=2)
    return sandbox


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _union(*lists: tuple[NetRule, ...]) -> tuple[NetRule, ...]:
    rules = tuple(dict.fromkeys(rule for rules in lists for rule in rules))
    return permissions.EVERYTHING_ON_THE_NET if permissions.EVERYTHING_ON_THE_NET[0] in rules else rules
