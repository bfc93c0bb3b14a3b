"""Hostile programs: each act gets what Linux gives it, the VMM survives, and later requests see nothing of it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import GUESTS, Guests, Kvmserver, Service, ask, free_port, native


def acts(guest: str) -> list[str]:
    """The paths in a guest's table."""
    return re.findall(r'^    \{"(/[^"]+)", ', (GUESTS / f"{guest}.c").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def cpu(guests: Guests, installed: Kvmserver) -> Iterator[Service]:
    """One server for all hostile instructions."""
    with installed.serving([guests.c("attack_cpu")], "--max-request-time", "2") as started:
        yield started


@pytest.fixture(scope="module")
def memory(guests: Guests, installed: Kvmserver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One server for all hostile uses of memory, with two VMs in one process."""
    port = free_port()
    directory = str(tmp_path_factory.mktemp("attack").resolve())
    started = installed.serve([guests.c("attack_memory"), str(port), directory], port, threads=2)
    yield started
    installed.stop(started)


def check_instruction(path: str, cpu: Service, guests: Guests) -> None:
    """One instruction of the hostile program raises in the guest what it raises natively."""
    port = free_port()
    with native([guests.c("attack_cpu"), str(port)], port):
        expected = ask(port, path).body
    assert cpu.ask(path).body == expected
    assert cpu.ask("/segments").body == "0 0 0 0\n"


@pytest.mark.parametrize("path", acts("attack_cpu"))
def test_an_instruction_raises_what_it_raises_natively(path: str, cpu: Service, guests: Guests) -> None:
    check_instruction(path, cpu, guests)


def test_data_segments_tell_nothing_to_the_next_request(cpu: Service) -> None:
    for _ in range(20):
        assert cpu.ask("/leave").body == "0 0 0 0\n"
    assert cpu.ask("/segments").body == "0 0 0 0\n"


@pytest.mark.parametrize("offset", ["5000", "5001", "5002", "5003", "5010", "4000", "6000"])
@pytest.mark.parametrize("rcx", ["0", "1234", "8000000000000000", "ffffffff81000000", "1e00006000"])
def test_a_jump_into_the_entry_page_is_a_call_or_a_signal(offset: str, rcx: str, cpu: Service) -> None:
    answer = cpu.ask(f"/enter/{offset}/{rcx}")
    assert answer.status in (200, 502), answer
    assert cpu.ask("/segments").body == "0 0 0 0\n"


def test_an_entry_that_returns_to_itself_is_an_endless_loop_or_a_signal(cpu: Service) -> None:
    """A jump to the entry is a call, and returns there; a kick goes back to a `syscall` that is not there."""
    answer = cpu.ask("/enter/5000/1e00005000")
    assert (answer.status, answer.body) == (200, "11 1\n") or answer.status == 504
    assert cpu.ask("/segments").body == "0 0 0 0\n"


def check_memory_call(path: str, memory: Service, guests: Guests, tmp_path: Path) -> None:
    """One use of memory answers in the guest as natively, again and again, and no later request sees anything of it."""
    before = memory.ask("/check").body
    port = free_port()
    with native([guests.c("attack_memory"), str(port), str(tmp_path)], port):
        expected = ask(port, path).body
    for _ in range(3):
        assert memory.ask(path).body == expected
        assert {memory.ask("/check").body for _ in range(4)} == {before}


@pytest.mark.parametrize("path", acts("attack_memory"))
def test_memory_calls_answer_as_natively(path: str, memory: Service, guests: Guests, tmp_path: Path) -> None:
    check_memory_call(path, memory, guests, tmp_path)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dirty/20000", 200),
        ("/dirty/30000", 200),
        ("/dirty/40000", 502),
        ("/big-write/100", 200),
        ("/big-write/1000", 502),
        ("/big-file/100", 200),
        ("/big-file/1900", 502),
        ("/wide/", 200),
    ],
)
def test_memory_is_limited_and_given_back(path: str, status: int, memory: Service) -> None:
    before = memory.ask("/check").body
    for _ in range(3):
        assert memory.ask(path).status == status
        assert {memory.ask("/check").body for _ in range(4)} == {before}
    resident = subprocess.run(
        ["ps", "-o", "rss=", "--ppid", str(memory.process.pid)], capture_output=True, text=True, check=True
    )
    assert sum(int(size) for size in resident.stdout.split()) < 600 << 10
