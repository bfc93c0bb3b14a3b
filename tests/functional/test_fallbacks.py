"""The engine's core tests without features of the kernel that there is another way for (KVMSERVER_WITHOUT)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import EchoPeers, Guests, Kvmserver, Service, free_port
from test_canary import test_a_thousand_secrets_are_never_seen_again
from test_conformance import check_claims
from test_failures import (
    check_crash,
    service,
    test_a_failure_after_the_first_byte_cuts_the_connection,
    test_a_hang_is_a_504,
)
from test_run_time_code import (
    test_code_made_in_every_request,
    test_code_patched_for_good_is_undone_by_a_reset,
)
from test_servers import check_frozen

# What is imported is collected here, too, and runs with the fixture below.
__all__ = [
    "service",
    "test_a_failure_after_the_first_byte_cuts_the_connection",
    "test_a_hang_is_a_504",
    "test_a_thousand_secrets_are_never_seen_again",
    "test_code_made_in_every_request",
    "test_code_patched_for_good_is_undone_by_a_reset",
]

FEATURES = {
    "dirty-ring": "this KVM has no dirty ring",
    "sync-registers": "this KVM has no synchronised registers",
    "pagemap-scan": "this kernel has no PAGEMAP_SCAN",
}


@pytest.fixture(scope="module", params=FEATURES)
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
    assert FEATURES[without] in service.log
    kvmserver.stop(service)


@pytest.mark.parametrize(("path", "reason"), [("/segv", "SIGSEGV"), ("/non-canonical", "SIGSEGV"), ("/hog", "memory")])
def test_a_crash_is_a_502(path: str, reason: str, service: Service) -> None:
    check_crash(path, reason, service)


@pytest.mark.parametrize("family", ["memory", "signals", "threads", "registers"])
def test_our_linux_is_the_same(
    family: str, guests: Guests, kvmserver: Kvmserver, peers: EchoPeers, scratch: Path
) -> None:
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
    done = kvmserver.run("doctor")
    assert done.returncode == 0
    assert all(name.replace("-", "_").encode() in done.stdout for name in without.split(","))
