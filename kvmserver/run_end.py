"""How a run of the program ended (the RunEnd of ``_vmm.pyi``), in sentences and exit codes."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvmserver import units
from kvmserver.errors import EXIT_SIGNAL_BASE, KvmserverError, StartError

RunEnd = Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """A program that is no server is over: the exit code to pass on, and what the log should say (may be empty)."""

    exit_code: int
    message: str = ""


def after_boot(end: RunEnd, program: str, server_expected: bool, boot_time_ns: int) -> Ended | None:
    """None if the program is ready to serve, Ended if it simply is over. Raises StartError for everything else."""
    refused = _refused_listen(end, program)
    match end.get("end"):
        case "ready":
            return None
        case "exited" | "killed" if not server_expected:
            return _plain_end(end, program, refused)
    if refused is not None:
        raise refused
    if end.get("end") == "timed_out":
        what = f"did not listen within {units.format_duration(boot_time_ns)}{_detail(end)}"
    else:
        what = f"{describe(end, boot_time_ns)} before it listened"
    raise StartError(f"program {program!r} {what}", _hint(end))


def after_storage_boot(end: RunEnd, program: str, boot_time_ns: int) -> None:
    """Raises StartError unless the storage program waits for its first call."""
    match end.get("end"):
        case "waiting":
            return
        case "exited":
            what = f"exited with status {_integer(end, 'status')}"
        case "timed_out":
            what = f"did not wait for calls within {units.format_duration(boot_time_ns)}{_detail(end)}"
            raise StartError(f"the storage program {program!r} {what}", "give it more time with --max-boot-time")
        case _:
            what = describe(end, boot_time_ns, with_detail=False)
    hints = {
        "out_of_memory": "give it more with --max-main-memory",
        "exited": "a storage program takes calls in a loop around kvmserverguest_storage_wait_paused",
    }
    sentence = f"the storage program {program!r} {what} before it waited for calls{_detail(end)}"
    raise StartError(sentence, hints.get(str(end.get("end")), ""))


def describe(end: RunEnd, limit_ns: int, with_detail: bool = True) -> str:
    """What happened, as the predicate of a sentence about the program."""
    detail = _detail(end) if with_detail else ""
    match end.get("end"):
        case "exited":
            return f"ended with status {_integer(end, 'status')}"
        case "killed":
            return f"was killed by {signal_name(_integer(end, 'signal'))}{detail}"
        case "timed_out":
            return f"took longer than {units.format_duration(limit_ns)}{detail}"
        case "out_of_memory":
            return f"ran out of memory{detail}"
        case "deadlocked":
            return f"waited for something that cannot happen{detail}"
        case "broken":
            return f"was stopped because its virtual machine failed{detail}"
    return f"stopped in an unknown way ({end.get('end')!r})"


def listener_address(listener: Mapping[str, Any]) -> str:
    """``0.0.0.0:8000``, ``[::]:8000``, or the path of a unix socket."""
    address = str(listener.get("address", ""))
    if listener.get("family") == "unix":
        return address
    return f"[{address}]:{listener.get('port')}" if ":" in address else f"{address}:{listener.get('port')}"


def refused_listen(end: RunEnd, program: str) -> str:
    """The sentence about a bind that failed on the host, or an empty text."""
    refused = _refused_listen(end, program)
    return f"{refused.message} ({refused.hint})" if refused else ""


def signal_name(number: int) -> str:
    """``signal 11 (SIGSEGV)``."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _plain_end(end: RunEnd, program: str, refused: KvmserverError | None) -> Ended:
    message = refused.message + f" ({refused.hint})" if refused else ""
    if end["end"] == "exited":
        return Ended(_integer(end, "status") & 0xFF, message)
    return Ended(EXIT_SIGNAL_BASE + _integer(end, "signal"), f"program {program!r} {describe(end, 0)}")


def _refused_listen(end: RunEnd, program: str) -> StartError | None:
    refused = end.get("refused_listen")
    if not isinstance(refused, Mapping):
        return None
    reason, port = str(refused.get("error", "refused")), refused.get("port")
    denied = any(word in reason.lower() for word in ("denied", "permitted", "eacces", "eperm"))
    hint = (
        f"allow it with --allow-listen=:{port}" if denied else "stop what uses the address, or give the program another"
    )
    return StartError(f"program {program!r} cannot listen on {listener_address(refused)}: {reason}", hint)


def _detail(end: RunEnd) -> str:
    return f": {end['detail']}" if end.get("detail") else ""


def _hint(end: RunEnd) -> str:
    hints = {
        "timed_out": "give it more time with --max-boot-time; a program that is no server runs without -e, -t and -w",
        "out_of_memory": "give it more with --max-main-memory",
        "exited": "a program that is no server runs without -e, -t and -w",
    }
    return hints.get(str(end.get("end")), "")


def _integer(end: RunEnd, key: str) -> int:
    value = end.get(key)
    return value if isinstance(value, int) else 0
