"""The gate between request VMs and the storage program, used as a hostile or careless program would use it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Guests, Kvmserver, Service, free_port

EPERM, EFAULT, ENOMEM, EINVAL = -1, -14, -12, -22
REFUSED = {EPERM, EFAULT, ENOMEM, EINVAL}
BUFFER_MAX = 16 << 20

# What storage_hostile.c names, and what must come of it.
EXPECTED_ERRORS = {
    "wait": EPERM,
    "shared-whole": 0,
    "still-there": 1,
    "shared-zero": 1,
    "shared-too-much": 1,
    "shared-huge": 1,
    "shared-wraps": 1,
    "shared-rest": 1,
    "shared-none": 1,
    "empty": 0,
    "empty-anywhere": 0,
    "available": 1,
}
# Changes to the mapping of the shared memory: refused, with whatever errno.
CHANGES = {"unmap", "unmap-all-around", "protect", "replace", "move", "move-onto"}


def serve(installed: Kvmserver, guests: Guests, program: str, *words: str, threads: int = 1) -> Service:
    port = free_port()
    storage = [guests.c("storage_service")]
    return installed.serve([guests.c(program), str(port), *words], port, threads=threads, warmup=4, storage=storage)


@pytest.fixture(scope="module")
def hostile(guests: Guests, installed: Kvmserver) -> Iterator[Service]:
    """One server for all hostile calls, of one VM: whatever is left over, the next request sees."""
    service = serve(installed, guests, "storage_hostile")
    yield service
    installed.stop(service)


@pytest.fixture(scope="module")
def caller(guests: Guests, installed: Kvmserver) -> Iterator[Service]:
    """One server that has taken a MiB of the shared memory before its snapshot."""
    service = serve(installed, guests, "storage_caller", "keep")
    yield service
    installed.stop(service)


def text(service: Service, path: str) -> str:
    answer = service.ask(path, timeout_s=60)
    assert answer.status == 200, (path, answer)
    return answer.body


def named(service: Service, path: str) -> dict[str, int]:
    return {name: int(result) for name, result in re.findall(r"([\w-]+)=(-?\d+)\n", text(service, path))}


def check_clean(service: Service) -> None:
    assert named(service, "/scan") == {"clean": 1}


def test_every_bad_call_is_a_result(hostile: Service) -> None:
    results = named(hostile, "/errors")
    assert {name: results[name] for name in EXPECTED_ERRORS} == EXPECTED_ERRORS
    assert {name for name in CHANGES if results[name] not in REFUSED} == set()
    bad_buffers = results.keys() - EXPECTED_ERRORS.keys() - CHANGES
    assert len(bad_buffers) == 17
    assert {results[name] for name in bad_buffers} == {EINVAL}
    check_clean(hostile)


def test_buffers_in_files_are_the_files_or_a_result(hostile: Service, scratch: Path) -> None:
    """What was copied before a page turned out to be missing stays in nobody's window."""
    results = named(hostile, f"/files/{str(scratch).replace('/', '+')}")
    assert results == {
        "shared": 8192,
        "shared-written": 1,
        "private": 8192,
        "private-own": 1,
        "private-not-written": 1,
        "read-only": EINVAL,
        "cut": EINVAL,
        "cut-clean": 1,
        "empty": EINVAL,
        "empty-clean": 1,
        "gone": EINVAL,
        "gone-clean": 1,
    }
    assert (scratch / "private").read_bytes() == bytes(8192)
    assert (scratch / "shared").read_bytes()[7:] == b"\xff" * 8185
    check_clean(hostile)


@pytest.mark.parametrize("seed", range(4))
def test_random_pointers_and_lengths_harm_nobody(hostile: Service, seed: int) -> None:
    assert text(hostile, f"/random/{seed}/300") == "300 calls, some refused, 0 strange"
    check_clean(hostile)
    assert hostile.statistics()["storage.failures"] == 0


def numbers(service: Service, path: str) -> list[int]:
    return [int(word) for word in text(service, path).split()]


def test_threads_of_one_vm_that_call_at_once_get_every_number_once(hostile: Service) -> None:
    (last,) = numbers(hostile, "/")
    assert sorted(numbers(hostile, "/threads/16/10")) == list(range(last + 1, last + 161))


def test_calls_from_a_signal_handler_get_every_number_once(hostile: Service) -> None:
    """A handler calls while the call that it interrupted is being made."""
    (last,) = numbers(hostile, "/")
    given = sorted(numbers(hostile, "/signals/300"))
    assert len(given) >= 300
    assert given == list(range(last + 1, last + 1 + len(given)))
    assert numbers(hostile, "/") == [given[-1] + 1]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 64 << 10, 1 << 20, BUFFER_MAX])
def test_both_copies_are_counted_and_those_in_shared_memory_are_none(caller: Service, size: int) -> None:
    before = caller.statistics()
    assert text(caller, f"/size/{size}") == (f"{size} ok" if size >= 7 else "0 ok")
    between = caller.statistics()
    assert between["storage.bytes_copied"] - before["storage.bytes_copied"] == 2 * size
    if 0 < size <= BUFFER_MAX - (1 << 20):
        assert text(caller, f"/shared/{size}") == (f"{size} ok" if size >= 7 else "0 ok")
        assert caller.statistics()["storage.bytes_copied"] == between["storage.bytes_copied"]
    assert text(caller, "/call/scan") == "5 clean"
    assert text(caller, "/find") == "clean"


def test_too_long_a_buffer_is_refused_and_copied_nowhere(caller: Service) -> None:
    before = caller.statistics()
    assert text(caller, f"/size/{BUFFER_MAX + 1}") == str(EINVAL)
    after = caller.statistics()
    assert (after["storage.calls"], after["storage.bytes_copied"]) == (
        before["storage.calls"],
        before["storage.bytes_copied"],
    )


def test_the_storage_program_finds_nothing_of_the_callers_memory(caller: Service) -> None:
    """It searches all it can read for bytes right beside the buffer; those in the shared memory it must find."""
    assert text(caller, "/secret") == "0 of 1, 1 of 1"


def test_what_was_taken_before_the_snapshot_stays_taken(caller: Service) -> None:
    for _ in range(2):
        assert text(caller, f"/take/{15 << 20}") == "taken"
        assert text(caller, f"/take/{(15 << 20) + 1}") == "none left"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (f"/leave/{15 << 20}", "left"),
        ("/leave/4097", "left"),
        ("/within/beyond+100000", "0 beyond 100000"),
        ("/within/beyond+8000000", "0 beyond 8000000"),
        ("/until/20", "written"),
        ("/receive/hello", "hello"),
        ("/within/invert", "4096 invert"),
    ],
)
def test_shared_memory_is_zero_for_the_next_request_whoever_wrote(caller: Service, path: str, answer: str) -> None:
    """By the program, by the storage program beyond what was taken or after its answer, and by the host in a read."""
    for _ in range(2):
        assert text(caller, path).split("\0")[0] == answer
        assert text(caller, "/find") == "clean"


def test_the_storage_program_cannot_change_its_window(caller: Service) -> None:
    assert text(caller, "/call/moves") == "40 " + "refused " * 5
    assert text(caller, "/call/scan") == "5 clean"
