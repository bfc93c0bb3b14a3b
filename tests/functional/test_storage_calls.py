"""Calls of request VMs to the storage program: what each side sees, what is counted, and what happens when it dies."""

import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Guests, Kvmserver, Service, free_port, repetitions, wait_until

WARMUP = 10
EINVAL, EPIPE, EDEADLK, ETIMEDOUT = -22, -32, -35, -110


@pytest.fixture
def start(guests: Guests, kvmserver: Kvmserver) -> Callable[..., Service]:
    """Starts the two C programs with the given options."""

    def begin(
        *options: str, threads: int = 1, warmup_path: str = "/call/count", one_to_one: bool = False, mode: str = ""
    ) -> Service:
        port = free_port()
        words = [*options, "--warmup-request", f"GET {warmup_path}"]
        storage = [*(["--1-to-1"] if one_to_one else []), guests.c("storage_service"), *mode.split()]
        program = [guests.c("storage_caller"), str(port)]
        return kvmserver.serve(program, port, *words, threads=threads, warmup=WARMUP, storage=storage)

    return begin


def call(service: Service, words: str, status: int = 200) -> tuple[int, str]:
    """The result of one call and what is in the buffer afterwards."""
    answer = service.ask(f"/call/{words}", timeout_s=30)
    assert answer.status == status, answer
    result, _, text = answer.body.partition(" ")
    return (int(result), text) if status == 200 else (0, answer.body)


def count(service: Service) -> int:
    result, text = call(service, "count")
    assert result == len(text), (result, text)
    return int(text)


def test_the_storage_program_goes_on_where_the_warm_up_left_it(start: Callable[..., Service]) -> None:
    service = start(threads=2)
    assert re.fullmatch(r"Storage VM initialized\. init=\d+ms", service.output.splitlines()[0])
    assert [count(service) for _ in range(5)] == [WARMUP + turn for turn in range(1, 6)]
    # The request VMs' own state is that of the snapshot.
    assert {service.ask().body for _ in range(5)} == {"1\n"}


def test_every_number_is_given_once_to_eight_clients_of_four_vms(start: Callable[..., Service]) -> None:
    service = start(threads=4)
    wanted = repetitions(800)
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: count(service), range(wanted)))
    assert sorted(numbers) == list(range(WARMUP + 1, WARMUP + 1 + wanted))


@pytest.mark.parametrize("size", [1, 7, 8, 4095, 4096, 4097, 65536, 1 << 20, 16 << 20])
def test_a_buffer_of_any_size_comes_back_changed(start: Callable[..., Service], size: int) -> None:
    service = start()
    for kind in ("size", "shared"):
        body = service.ask(f"/{kind}/{size}", timeout_s=60).body
        # Below seven bytes there is no whole word, and nothing to be done.
        assert body == (f"{size} ok" if size >= 7 else "0 ok"), kind
    assert service.ask(f"/size/{(16 << 20) + 1}").body == str(EINVAL)


def test_the_storage_program_sees_the_buffer_and_nothing_around_it(start: Callable[..., Service]) -> None:
    service = start()
    assert service.ask("/size/1048576", timeout_s=30).body == "1048576 ok"
    assert call(service, "scan") == (5, "clean")
    assert service.ask("/size/100000").body == "100000 ok"
    assert call(service, "scan") == (5, "clean")


def test_a_call_of_the_storage_program_itself_is_a_deadlock(start: Callable[..., Service]) -> None:
    service = start()
    assert call(service, "call") == (3, str(EDEADLK))
    assert count(service) > 0


def test_k16_a_call_leaves_the_registers_alone(start: Callable[..., Service]) -> None:
    assert start().ask("/registers").body == "same"


@pytest.mark.parametrize("size", [1, 4096, 500_000, 8 << 20])
def test_shared_memory_is_zero_for_the_next_request(start: Callable[..., Service], size: int) -> None:
    service = start()
    for _ in range(3):
        assert service.ask(f"/leave/{size}", timeout_s=30).body == "left"
        assert service.ask("/find", timeout_s=30).body == "clean"


def test_calls_cost_one_exit_of_the_storage_vm_and_shared_ones_copy_nothing(start: Callable[..., Service]) -> None:
    service = start(mode="quiet")
    before = service.statistics()
    for _ in range(20):
        assert service.ask("/shared/65536").body == "65536 ok"
    between = service.statistics()
    assert between["storage.calls"] - before["storage.calls"] == 20
    assert between["storage.exits"] - before["storage.exits"] == 20
    assert between["storage.bytes_copied"] == before["storage.bytes_copied"]
    assert service.ask("/size/65536").body == "65536 ok"
    assert service.statistics()["storage.bytes_copied"] - between["storage.bytes_copied"] == 2 * 65536


def vm_switches(service: Service) -> int:
    """How often the thread of the request VM has given up the processor by itself."""
    root = Path(f"/proc/{service.process.pid}")
    todo, found = [service.process.pid], 0
    while todo:
        pid = todo.pop()
        root = Path(f"/proc/{pid}")
        for task in (root / "task").iterdir():
            todo += [int(child) for child in (task / "children").read_text().split()]
            if (task / "comm").read_text().strip() == "vm-0":
                text = (task / "status").read_text()
                found += int(text.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return found


def test_a_call_is_made_on_the_callers_thread_without_a_switch_and_with_two_exits(
    start: Callable[..., Service],
) -> None:
    service = start(mode="quiet")
    switches, numbers = vm_switches(service), service.statistics()
    assert service.ask("/many/1000").body == "1000"
    # The thread sleeps for the request itself, not for its calls.
    assert vm_switches(service) - switches < 10
    used = {name: value - numbers[name] for name, value in service.statistics().items()}
    assert used["storage.calls"] == used["storage.exits"] == 1000
    assert 1000 <= used["totals.exits"] < 1050
    assert used["storage.kicks"] == 0


def test_it_runs_by_itself_while_nobody_calls(start: Callable[..., Service]) -> None:
    service = start()
    first = int(call(service, "ticks")[1])
    time.sleep(0.3)
    assert int(call(service, "ticks")[1]) >= first + 20


def test_a_busy_storage_program_is_kicked(start: Callable[..., Service]) -> None:
    service = start()
    call(service, "busy")
    time.sleep(0.2)
    before = count(service)
    assert [count(service) for _ in range(20)] == list(range(before + 1, before + 21))
    assert service.statistics()["storage.kicks"] >= 1
    call(service, "rest")


@pytest.mark.parametrize("death", ["crash", "exit", "eat"])
def test_a_storage_program_that_dies_is_started_anew(start: Callable[..., Service], death: str) -> None:
    service = start("--max-main-memory", "256MiB")
    assert call(service, death)[0] == EPIPE
    wait_until(lambda: call(service, "count")[0] > 0, 5, service.story())
    assert count(service) < WARMUP
    assert {service.ask().body for _ in range(5)} == {"1\n"}
    numbers = service.statistics()
    assert (numbers["storage.failures"], numbers["storage.starts"]) == (1, 2)
    wait_until(lambda: "the storage program was started again" in service.log, 5, service.story())


def test_one_that_hangs_is_ended_when_the_call_takes_too_long(start: Callable[..., Service]) -> None:
    service = start("--max-storage-time", "500ms")
    assert call(service, "hang")[0] == ETIMEDOUT
    wait_until(lambda: call(service, "count")[0] > 0, 5, service.story())


def test_a_request_whose_time_ends_in_a_call_leaves_the_call_to_end_alone(start: Callable[..., Service]) -> None:
    service = start("--max-request-time", "500ms", threads=2)
    call(service, "sleep+1000", status=504)
    began = time.monotonic()
    # The answer of that call goes to nobody, and the next one waits for its turn.
    while (result := service.ask("/call/count", timeout_s=10)).status == 504:
        assert time.monotonic() - began < 10
    assert int(result.body.split()[1]) > WARMUP + 1
    assert service.statistics()["storage.failures"] == 0


def test_each_vm_has_a_storage_program_of_its_own(start: Callable[..., Service]) -> None:
    service = start(threads=3, one_to_one=True)
    numbers = [count(service) for _ in range(60)]
    assert service.statistics()["storage.starts"] == 3
    assert sorted(numbers) != list(range(WARMUP + 1, WARMUP + 61))
    assert min(numbers) == 1


def test_a_worker_that_is_killed_comes_back_with_a_new_storage_program(start: Callable[..., Service]) -> None:
    service = start(threads=2)
    assert count(service) == WARMUP + 1
    tenant = int(Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()[0])
    worker = int(Path(f"/proc/{tenant}/task/{tenant}/children").read_text().split()[0])
    Path(f"/proc/{worker}/comm").read_text()

    os.kill(worker, signal.SIGKILL)

    def answers() -> bool:
        try:
            return count(service) <= WARMUP
        except (OSError, AssertionError):
            return False

    wait_until(answers, 15, service.story())


@pytest.mark.parametrize(("argument", "says"), [("3", "exited with status 3"), ("never", "did not")])
def test_one_that_never_waits_is_no_start(guests: Guests, kvmserver: Kvmserver, argument: str, says: str) -> None:
    words = ["--allow-all", "--max-boot-time", "1", "storage", guests.c("storage_service"), argument]
    service = kvmserver.start("-e", *words, "++", "run", guests.c("storage_caller"), "1", port=0)
    assert service.process.wait(30) == 1
    assert "storage program" in service.log
    assert says in service.log or "before it waited" in service.log, service.log


def test_the_library_is_in_every_guest(kvmserver: Kvmserver) -> None:
    code = "import ctypes; print(ctypes.CDLL('libkvmserverguest.so').kvmserverguest_available())"
    assert kvmserver.run("--allow-read", "run", "python3", "-c", code).stdout.strip() == b"1"
