"""The bugs of a peer, by their numbers, where a server is needed to show that they are not ours.

Each act of tests/guests/peer_bugs.c ruins what the next request looks for; natively the ruins are found, so the acts
can fail. The other tests here are about the way of a request through fork, warm-up and reset as a whole.
"""

import os
import re
import statistics
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest
from harness import (
    GUESTS,
    Guests,
    Kvmserver,
    Service,
    ask,
    ask_often,
    free_port,
    native,
    open_descriptors,
    repetitions,
    wait_until,
)

ACTS = re.findall(
    r'^    \{"(/[^"]+)", \w+\},( /\* ruins nothing \*/)?$', (GUESTS / "peer_bugs.c").read_text(), re.MULTILINE
)
WARMUP = 20


@pytest.fixture(scope="module")
def service(guests: Guests, installed: Kvmserver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One server for all acts, with four VMs in one process: host descriptors and mappings lie side by side."""
    port = free_port()
    program = [guests.c("peer_bugs"), str(port), str(tmp_path_factory.mktemp("bugs").resolve())]
    started = installed.serve(program, port, threads=4, warmup=WARMUP)
    yield started
    installed.stop(started)


def test_every_act_is_known() -> None:
    assert len(ACTS) == (GUESTS / "peer_bugs.c").read_text().count('    {"/')


@pytest.mark.parametrize("path", [path for path, harmless in ACTS if not harmless])
def test_natively_the_second_request_finds_the_ruins(path: str, guests: Guests, scratch: Path) -> None:
    port = free_port()
    with native([guests.c("peer_bugs"), str(port), str(scratch)], port):
        assert ask(port, path).body == "ok\n"
        try:
            second = ask(port, path).body
        except (OSError, HTTPException):
            second = "it died"
        assert second != "ok\n"


@pytest.mark.parametrize("path", [path for path, harmless in ACTS if not harmless and path != "/N7-shutdown"])
def test_without_a_reset_the_ruins_are_found_in_a_guest_too(
    path: str, guests: Guests, kvmserver: Kvmserver, scratch: Path
) -> None:
    """Our Linux does what the acts ask for. (A program that shuts its own listener down ends, and is forked anew.)"""
    port = free_port()
    program = [guests.c("peer_bugs"), str(port), str(scratch)]
    service = kvmserver.start("-t", "1", "--warmup", "2", "--allow-all", "run", *program, port=port).wait_ready()
    assert service.ask(path).body == "ok\n"
    assert service.ask(path).body != "ok\n"
    kvmserver.stop(service)


@pytest.mark.parametrize("path", [path for path, _ in ACTS])
def test_no_request_finds_ruins(path: str, service: Service) -> None:
    """K5, K14, K18, N7, N11, T14, T21, T33, T34, T36, T43, T47: what each path is about says its name."""
    number = repetitions(100)
    assert ask_often(service.port, number, 4, path) == {"ok": number}
    number = repetitions(20)
    assert ask_often(service.port, number, 4) == {f"{WARMUP + 1}": number}


def test_all_acts_at_once(service: Service) -> None:
    """T34: four VMs of one process open and close at the same time; nobody closes what is another's."""
    for path, _ in ACTS:
        assert ask_often(service.port, 8, 4, path) == {"ok": 8}
    assert ask_often(service.port, 400, 4, "/T34-storm") == {"ok": 400}


def test_ten_thousand_resets_leave_no_descriptor(service: Service) -> None:
    """T55: every request leaves twenty descriptors and another working directory behind."""
    path = "/T55-leave-open"
    assert ask_often(service.port, 40, 4, path) == {"ok": 40}
    before = open_descriptors(service)
    assert ask_often(service.port, 10_000, 4, path) == {"ok": 10_000}
    # A connection more or less may just be closing.
    wait_until(lambda: open_descriptors(service) <= before + 2, 5, "descriptors are closed")


@pytest.mark.parametrize("flavour", ["static", "static-pie", "musl"])
def test_other_builds_keep_their_data(flavour: str, guests: Guests, kvmserver: Kvmserver, scratch: Path) -> None:
    """T43: initialised data beside a large zero area; K14: thread-local values, which each libc lays out in its way."""
    port = free_port()
    program = [guests.c("peer_bugs", flavour), str(port), str(scratch)]
    service = kvmserver.serve(program, port, threads=2, warmup=3)
    for path in ("/T43-data", "/K14-T36-thread-local", "/K5-fixed"):
        assert ask_often(port, 40, 2, path) == {"ok": 40}
    kvmserver.stop(service)


def test_each_worker_process_forks_its_own_vms(guests: Guests, kvmserver: Kvmserver) -> None:
    """T27: processes are forked, and then VMs in them; x87 and vector registers are those of the snapshot in each."""
    port = free_port()
    program = [guests.c("canary"), str(port), "/etc/hostname"]
    service = kvmserver.serve(program, port, "--vms-per-process", "1", threads=3, warmup=5)
    needle = 0x1234567890ABCDEF * 0x9E3779B97F4A7C15 % 2**64
    paths = [f"/plant?needle={needle:x}&value={value:x}" for value in range(1, 60)]
    assert {service.ask(path).body for path in paths} == {"clean\n"}
    kvmserver.stop(service)


WAITS = [
    ("server_epoll", "lt"),
    ("server_epoll", "two"),
    ("server_poll", "poll"),
    ("server_select", "select"),
    ("server_accept", "accept"),
    ("server_accept", "thread"),
]


@pytest.mark.parametrize(("program", "mode"), WAITS)
def test_a_thousand_warmup_connections_in_every_way_to_wait(
    program: str, mode: str, guests: Guests, kvmserver: Kvmserver
) -> None:
    """K6, K7: no wait hangs, and no thread of a warm-up connection leaves anything that the next one trips over."""
    port = free_port()
    service = kvmserver.serve([guests.c(program), str(port), mode], port, warmup=1000)
    assert ask_often(port, 20) == {"1001": 20}
    kvmserver.stop(service)


def test_closes_of_files_are_no_warmup_requests(guests: Guests, kvmserver: Kvmserver, scratch: Path) -> None:
    """K8, K9: each request opens and closes five files and a connection; exactly N requests are made all the same."""
    port = free_port()
    program = [guests.c("peer_bugs"), str(port), str(scratch)]
    service = kvmserver.serve(program, port, "--warmup-request", "GET /files", warmup=25)
    assert ask_often(port, 10) == {"26": 10}
    assert ask_often(port, 10, path="/files") == {"26": 10}
    kvmserver.stop(service)


@pytest.mark.parametrize(("program", "mode"), [("server_epoll", "lt"), ("server_accept", "accept")])
def test_the_first_request_is_as_fast_as_later_ones(
    program: str, mode: str, guests: Guests, kvmserver: Kvmserver
) -> None:
    """K21: nothing is left to be done when the first client comes. The best of three starts, on a busy machine."""

    def took_ms(port: int) -> float:
        start = time.perf_counter()
        assert ask(port).status == 200
        return (time.perf_counter() - start) * 1000

    excess = []
    for _ in range(3):
        port = free_port()
        service = kvmserver.serve([guests.c(program), str(port), mode], port, warmup=20)
        first = took_ms(port)
        excess.append(first - 3 * statistics.median(took_ms(port) for _ in range(50)))
        kvmserver.stop(service)
    assert min(excess) < 10, excess


def test_a_program_runs_again_and_again_alike(guests: Guests, kvmserver: Kvmserver) -> None:
    """K22: starts are as reliable as requests, of which every server of the other files answers a thousand."""
    program = guests.c("run_time_code", "static")
    for turn in range(25):
        done = kvmserver.run("run", program, "once")
        assert (done.returncode, done.stdout[:18]) == (0, b"run-time code: ok\n"), f"{turn}: {done.stderr.decode()}"


def test_a_start_leaves_no_temporary_file(guests: Guests, kvmserver: Kvmserver, scratch: Path) -> None:
    """N16: neither while it serves nor afterwards."""
    temporary = scratch / "temporary"
    temporary.mkdir()
    places = [temporary, Path("/dev/shm")]
    before = [set(os.listdir(place)) for place in places]
    port = free_port()
    environment = {"TMPDIR": str(temporary)}
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, warmup=3, environment=environment)
    assert [set(os.listdir(place)) for place in places] == before
    assert service.ask().body == "4\n"
    kvmserver.stop(service)
    assert [set(os.listdir(place)) for place in places] == before
