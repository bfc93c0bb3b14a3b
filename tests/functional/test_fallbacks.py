"""The engine's core tests without features of the kernel that there is another way for (KVMSERVER_WITHOUT).

Each feature whose absence changes how a VM is run or reset alone, and all of them at once. Every kind of core test is
here: simple programs, servers in C and CPython's, faults and signals, how an access that the host refuses is decoded,
time limits and kicks, worker processes, code made at run time, secrets, and a storage program. tests/functional and
tests/security have all of each kind.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PROGRAMS, PYTHON, EchoPeers, Guests, Kvmserver, Service, free_port, repetitions
from test_canary import ROUNDS, check_secrets
from test_conformance import check_claims
from test_failures import (
    check_crash,
    service,
    test_a_failure_after_the_first_byte_cuts_the_connection,
    test_a_hang_is_a_504,
)
from test_hostile_guests import (
    acts,
    check_instruction,
    check_memory_call,
    cpu,
    memory,
    test_a_jump_into_the_entry_page_is_a_call_or_a_signal,
)
from test_peer_bugs import test_each_worker_process_forks_its_own_vms
from test_programs import (
    test_an_exit_in_a_thread_ends_the_program,
    test_death_by_signal_is_128_and_its_number,
    test_exit_status_passes_through,
    test_standard_streams_pass_through,
)
from test_run_time_code import (
    test_code_made_in_every_request,
    test_code_patched_for_good_is_undone_by_a_reset,
)
from test_servers import check_frozen
from test_start import test_a_worker_that_dies_is_replaced
from test_storage_calls import start, test_a_busy_storage_program_is_kicked

# What is imported is collected here, too, and runs with the fixture below.
__all__ = [
    "cpu",
    "memory",
    "service",
    "start",
    "test_a_busy_storage_program_is_kicked",
    "test_a_failure_after_the_first_byte_cuts_the_connection",
    "test_a_hang_is_a_504",
    "test_a_jump_into_the_entry_page_is_a_call_or_a_signal",
    "test_a_worker_that_dies_is_replaced",
    "test_an_exit_in_a_thread_ends_the_program",
    "test_code_made_in_every_request",
    "test_code_patched_for_good_is_undone_by_a_reset",
    "test_death_by_signal_is_128_and_its_number",
    "test_each_worker_process_forks_its_own_vms",
    "test_exit_status_passes_through",
    "test_standard_streams_pass_through",
]

FEATURES = {
    "dirty-ring": "this KVM has no dirty ring",
    "sync-registers": "this KVM has no synchronised registers",
    "pagemap-scan": "this kernel has no PAGEMAP_SCAN",
    "time-stamp-counter": "this KVM gives guests a time-stamp counter of their own",
    "fsgsbase": "this KVM does not offer FSGSBASE",
}

# Without the others programs only make more system calls.
ALONE = ("dirty-ring", "sync-registers", "pagemap-scan")
# All at once, as the value of KVMSERVER_WITHOUT.
ALL = ",".join(FEATURES)
# What of our Linux meets the difference.
FAMILIES = {
    "dirty-ring": ("memory",),
    "sync-registers": ("registers", "signals", "threads"),
    "pagemap-scan": ("memory",),
    ALL: ("clocks", "memory", "registers", "signals"),
}
# Those that copy megabytes piece by piece are left to tests/security: they take ten seconds.
SLOW_MEMORY_CALLS = ("/fragments", "/hidden-fragments", "/toggles")


@pytest.fixture(scope="module", params=[*ALONE, pytest.param(ALL, id="all")])
def without(request: pytest.FixtureRequest) -> str:
    """What kvmserver is to do without."""
    return str(request.param)


@pytest.fixture(scope="module")
def installed(without: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kvmserver]:
    """The command in an environment that withholds features."""
    command = Kvmserver(tmp_path_factory.mktemp("without"), {"KVMSERVER_WITHOUT": without})
    yield command
    command.kill_all()


@pytest.mark.parametrize("program", ["server_epoll", "server_poll", "server_accept"])
def test_counter_is_frozen_and_the_log_says_what_is_missing(
    program: str, without: str, guests: Guests, kvmserver: Kvmserver
) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c(program), str(port)], port, threads=2, warmup=20)
    check_frozen(service, "21", clients=2, requests=300)
    assert [name for name, sentence in FEATURES.items() if sentence not in service.log and name in without] == []
    kvmserver.stop(service)


def test_cpython_is_frozen(kvmserver: Kvmserver) -> None:
    port = free_port()
    script = str(PROGRAMS / "counter_http_server.py")
    service = kvmserver.serve([PYTHON, script, str(port)], port, threads=2, warmup=20)
    check_frozen(service, "21", clients=2, requests=300)
    kvmserver.stop(service)


def test_secrets_are_never_seen_again(without: str, guests: Guests, kvmserver: Kvmserver) -> None:
    check_secrets(ROUNDS if without == ALL else ROUNDS // 5, guests, kvmserver)


@pytest.mark.parametrize(("path", "reason"), [("/segv", "SIGSEGV"), ("/non-canonical", "SIGSEGV"), ("/hog", "memory")])
def test_a_crash_is_a_502(path: str, reason: str, service: Service) -> None:
    check_crash(path, reason, service)


@pytest.mark.parametrize("path", acts("attack_cpu"))
def test_an_instruction_raises_what_it_raises_natively(path: str, cpu: Service, guests: Guests) -> None:
    check_instruction(path, cpu, guests)


@pytest.mark.parametrize("path", [path for path in acts("attack_memory") if path not in SLOW_MEMORY_CALLS])
def test_memory_calls_answer_as_natively(path: str, memory: Service, guests: Guests, tmp_path: Path) -> None:
    check_memory_call(path, memory, guests, tmp_path)


def test_the_time_limit_holds_ten_times(guests: Guests, kvmserver: Kvmserver) -> None:
    """A run that was interrupted, in user mode or in a call, is reset like any other."""
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, "--max-request-time", "50ms", warmup=2)
    for turn in range(repetitions(10)):
        assert service.ask(("/loop", "/loop-calls")[turn % 2]).status == 504
        assert service.ask().body == "3\n"
    kvmserver.stop(service)


def test_our_linux_is_the_same(
    without: str, guests: Guests, kvmserver: Kvmserver, peers: EchoPeers, scratch: Path
) -> None:
    for family in FAMILIES[without]:
        check_claims(family, "dynamic", guests, kvmserver, peers, scratch)


def test_a_call_of_the_storage_program(without: str, guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    storage, caller = [guests.c("storage_service")], [guests.c("storage_caller"), str(port)]
    service = kvmserver.serve(caller, port, threads=2, storage=storage)
    assert [service.ask("/call/count").body for _ in range(20)] == [f"{len(str(n))} {n}" for n in range(1, 21)]
    assert service.ask("/size/1048576", timeout_s=30).body == "1048576 ok"
    assert service.ask("/shared/1048576", timeout_s=30).body == "1048576 ok"
    kvmserver.stop(service)


def test_a_name_that_is_no_feature_is_an_error(kvmserver: Kvmserver) -> None:
    done = kvmserver.run("--allow-all", "run", "true", environment={"KVMSERVER_WITHOUT": "dirty-ring,nonsense"})
    assert done.returncode == 1
    assert b'cannot do without "nonsense"' in done.stderr


def test_the_doctor_names_what_is_missing_and_finds_the_machine_fit(without: str, kvmserver: Kvmserver) -> None:
    done = kvmserver.run("doctor", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True), report
    withheld = [name.replace("-", "_") for name in without.split(",")]
    assert [report["kvm"][name] for name in withheld] == [False] * len(withheld)
    # This machine's kernel may lack others by itself.
    missing = [name.replace("-", "_") for name in FEATURES if not report["kvm"][name.replace("-", "_")]]
    (check,) = [check for check in report["checks"] if check["name"] == "kernel features"]
    assert (check["ok"], check["needed"], check["detail"]) == (False, False, f"missing: {', '.join(missing)}")
