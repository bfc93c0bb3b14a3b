"""Every way a run can end has its sentence and its exit code."""

from typing import Any

import pytest

from kvmserver import run_end
from kvmserver.errors import StartError
from kvmserver.run_end import Ended

REFUSED = {"address": "::", "port": 80, "error": "permission denied"}


def test_a_ready_program_has_not_ended() -> None:
    assert run_end.after_boot({"end": "ready"}, "x", True, 1) is None


def test_a_plain_program_passes_its_status_on() -> None:
    assert run_end.after_boot({"end": "exited", "status": 7}, "x", False, 0) == Ended(7)
    killed = run_end.after_boot({"end": "killed", "signal": 11, "detail": "rip 1"}, "x", False, 0)
    assert killed == Ended(139, "program 'x' was killed by signal 11 (SIGSEGV): rip 1")


def test_a_plain_program_that_could_not_listen_gets_a_hint() -> None:
    ended = run_end.after_boot({"end": "exited", "status": 1, "refused_listen": REFUSED}, "x", False, 0)
    assert ended is not None
    assert ended.exit_code == 1
    assert ended.message == "program 'x' cannot listen on [::]:80: permission denied (allow it with --allow-listen=:80)"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ({"end": "exited", "status": 0}, "program 'x' ended with status 0 before it listened"),
        ({"end": "killed", "signal": 200}, "program 'x' was killed by signal 200 before it listened"),
        ({"end": "timed_out", "detail": "in poll"}, "program 'x' did not listen within 2s: in poll"),
        ({"end": "out_of_memory"}, "program 'x' ran out of memory before it listened"),
        ({"end": "deadlocked"}, "program 'x' waited for something that cannot happen before it listened"),
        (
            {"end": "broken", "detail": "cannot map"},
            "program 'x' was stopped because its virtual machine failed: cannot map before it listened",
        ),
        ({"end": "new"}, "program 'x' stopped in an unknown way ('new') before it listened"),
        ({}, "program 'x' stopped in an unknown way (None) before it listened"),
        ({"end": "exited", "refused_listen": REFUSED}, "program 'x' cannot listen on [::]:80: permission denied"),
    ],
)
def test_a_server_that_never_listens_is_one_sentence(end: dict[str, Any], message: str) -> None:
    with pytest.raises(StartError) as caught:
        run_end.after_boot(end, "x", True, 2_000_000_000)
    assert caught.value.message == message
    assert caught.value.exit_code == 1


def test_deadlock_and_memory_are_errors_of_plain_programs_too() -> None:
    for end in ("out_of_memory", "deadlocked", "timed_out"):
        with pytest.raises(StartError):
            run_end.after_boot({"end": end}, "x", False, 0)


def test_addresses_are_shown_as_users_write_them() -> None:
    assert run_end.listener_address({"family": "inet", "address": "0.0.0.0", "port": 8000}) == "0.0.0.0:8000"
    assert run_end.listener_address({"family": "inet6", "address": "::1", "port": 80}) == "[::1]:80"
    assert run_end.listener_address({"family": "unix", "address": "/run/x.sock"}) == "/run/x.sock"


def test_a_storage_program_that_waits_has_not_ended() -> None:
    run_end.after_storage_boot({"end": "waiting", "init_ns": 1}, "x", 1)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ({"end": "exited", "status": 3}, "exited with status 3 before it waited for calls"),
        (
            {"end": "killed", "signal": 11, "detail": "rip 1"},
            "was killed by signal 11 (SIGSEGV) before it waited for calls: rip 1",
        ),
        ({"end": "timed_out", "detail": "in poll"}, "did not wait for calls within 2s: in poll"),
        ({"end": "out_of_memory"}, "ran out of memory before it waited for calls"),
        ({"end": "deadlocked"}, "waited for something that cannot happen before it waited for calls"),
        (
            {"end": "broken", "detail": "cannot map"},
            "was stopped because its virtual machine failed before it waited for calls: cannot map",
        ),
        ({"end": "ready"}, "stopped in an unknown way ('ready') before it waited for calls"),
        ({}, "stopped in an unknown way (None) before it waited for calls"),
    ],
)
def test_a_storage_program_that_never_waits_is_one_sentence(end: dict[str, Any], message: str) -> None:
    with pytest.raises(StartError) as caught:
        run_end.after_storage_boot(end, "x", 2_000_000_000)
    assert caught.value.message == f"the storage program 'x' {message}"
    assert caught.value.exit_code == 1
