"""A storage program that counts in an SQLite file which only it may open."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from databases import PYTHON_GRANTS, Load, python
from harness import Kvmserver, Service, free_port, wait_until

WARMUP = 100
JOURNALS = pytest.mark.parametrize("journal", ["wal", "delete"])

Start = Callable[[str], Service]


@pytest.fixture
def start(kvmserver: Kvmserver, scratch: Path) -> Start:
    """Starts a pair of which the storage program sees the test's directory as /data."""

    def begin(journal: str) -> Service:
        port = free_port()
        storage = ["--volume", f"{scratch}:/data:rw", *python("storage_sqlite", "/data/counter", journal)]
        request = [f"--allow-listen=:{port}", *python("storage_request", port)]
        words = ["--warmup-request", "GET /count"]
        return kvmserver.serve(request, port, *words, threads=2, warmup=WARMUP, grants=PYTHON_GRANTS, storage=storage)

    return begin


def in_file(directory: Path) -> int:
    """The number that the file has for everybody else."""
    database = sqlite3.connect(f"file:{directory / 'counter'}?mode=rw", uri=True, timeout=10)
    try:
        ((number,),) = database.execute("SELECT number FROM counter").fetchall()
        return int(number)
    finally:
        database.close()


@JOURNALS
def test_eight_clients_get_every_number_once(journal: str, start: Start, kvmserver: Kvmserver, scratch: Path) -> None:
    service = start(journal)
    assert [service.ask("/count").body for _ in range(3)] == [str(WARMUP + turn) for turn in (1, 2, 3)]
    with Load(service.port, "/count").from_clients(8) as load:
        time.sleep(2)
        # Reading beside the program, as another process, locks the file for moments.
        early = in_file(scratch)
    assert not load.refused
    assert len(load.numbers) > 50
    assert sorted(load.numbers) == list(range(WARMUP + 4, in_file(scratch) + 1))
    assert early <= max(load.numbers)
    kvmserver.stop(service)
    assert in_file(scratch) == max(load.numbers)


@JOURNALS
def test_a_program_that_crashed_goes_on_where_the_file_is(journal: str, start: Start, scratch: Path) -> None:
    service = start(journal)
    for crashes in range(1, 4):
        assert service.ask("/crash").status == 503
        wait_until(lambda: service.ask("/count").status == 200, 5, service.story())
        assert in_file(scratch) == WARMUP + 2 * crashes
    assert service.statistics()["storage.failures"] == 3


def test_a_request_vm_cannot_open_the_file(start: Start, scratch: Path) -> None:
    service = start("wal")
    for path in ("data/counter", f"{str(scratch)[1:]}/counter"):
        answer = service.ask(f"/open/{path}")
        assert (answer.status, "No such file" in answer.body) == (503, True)
    assert service.ask("/count").body == str(WARMUP + 1)
