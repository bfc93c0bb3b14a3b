"""A storage program that fails while clients load it: no wrong answer, no hang, soon up again, and nothing lost.

Redis keeps the counter and outlives all of it. A request that makes the program fail counts first, so that for every
death exactly one number is known to Redis and to nobody else.
"""

import functools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from databases import PYTHON_GRANTS, READ, Load, RedisServer, python, redis_server
from harness import Answer, Guests, Kvmserver, Service, free_port, wait_until

CLIENTS = 8
WARMUP = 10
RECOVERY_S = 1.0
DOWN = {"[Errno 32]", "[Errno 11]", "[Errno 110]"}

Start = Callable[..., Service]


@pytest.fixture
def redis(scratch: Path) -> Iterator[RedisServer]:
    with redis_server(scratch) as server:
        yield server


@pytest.fixture
def start(kvmserver: Kvmserver, redis: RedisServer) -> Start:
    """Starts a storage program, by default the one that counts in Redis, and the server that asks it."""

    def begin(*options: str, storage: Sequence[str] = (), threads: int = 2) -> Service:
        port = free_port()
        words = ["--max-main-memory", "256MiB", "--max-storage-time", "2s", "--warmup-request", "GET /count", *options]
        counter = [f"--allow-connect=127.0.0.1:{redis.port}", *python("storage_redis", redis.port)]
        request = [f"--allow-listen=:{port}", *python("storage_request", port)]
        grants = PYTHON_GRANTS
        return kvmserver.serve(
            request, port, *words, threads=threads, warmup=WARMUP, grants=grants, storage=storage or counter
        )

    return begin


def trigger(service: Service, word: str) -> Answer:
    """Make the program fail: it has this very call, and its caller is told."""
    answers: list[Answer] = []

    def reached() -> bool:
        answers.append(service.ask(f"/{word}"))
        assert answers[-1].status == 503
        # -EAGAIN: it is not up again since the last time.
        return "[Errno 11]" not in answers[-1].body

    wait_until(reached, 20, f"{word}: the program is not up again", pause_s=0.02)
    return answers[-1]


def until_answered(service: Service, load: Load) -> float:
    """How long it takes from now on until some client gets a number again."""
    before, began = len(load.numbers), time.monotonic()
    wait_until(lambda: len(load.numbers) > before, 20, "no number comes again", pause_s=0.001)
    return time.monotonic() - began


def missing(load: Load, first: int, last: int) -> int:
    """How many numbers the program gave that no client got."""
    load.check_answers(last)
    assert all(number >= first for number in load.numbers)
    return last + 1 - first - len(load.numbers)


@pytest.mark.parametrize(
    ("word", "times", "errno"), [("crash", 5, 32), ("exit", 2, 32), ("eat", 2, 32), ("hang", 2, 110)]
)
def test_a_program_that_fails_under_load(word: str, times: int, errno: int, start: Start, redis: RedisServer) -> None:
    service = start()
    with Load(service.port, "/count").from_clients(CLIENTS) as load:
        for _ in range(times):
            enough = len(load.numbers) + 50
            wait_until(functools.partial(has, load.numbers, enough), 20, "no number comes")
            assert f"[Errno {errno}]" in trigger(service, word).body
        until_answered(service, load)
    assert service.statistics()["storage.failures"] == times
    assert missing(load, WARMUP + 1, redis.number()) == times
    assert load.refused
    assert {answer.body[: answer.body.index("]") + 1] for answer in load.refused} <= DOWN
    assert load.slowest_s < 10


def has(items: Sequence[object], count: int) -> bool:
    return len(items) >= count


def has_failed(service: Service, times: int) -> bool:
    return service.statistics()["storage.failures"] >= times


@pytest.mark.parametrize("counts_in", ["memory", "redis"])
def test_it_recovers_within_a_second_of_being_able_to_start(
    counts_in: str, guests: Guests, start: Start, redis: RedisServer, scratch: Path
) -> None:
    """Beside eight clients; the middle of three times, since the machine may do other things, too.

    An interpreter with a client library takes most of that second itself on a busy machine, as the log tells.
    """
    gate = scratch / "gate"
    programs = {
        "memory": [f"--allow-read={scratch}", guests.c("storage_service"), "while", str(gate), "1"],
        "redis": [
            f"--allow-connect=127.0.0.1:{redis.port}",
            f"--allow-read={','.join([*READ, str(scratch)])}",
            *python("storage_redis", redis.port, gate),
        ],
    }
    took = []
    for _ in range(3):
        service = start(storage=programs[counts_in])
        with Load(service.port, "/count").from_clients(CLIENTS) as load:
            gate.touch()
            trigger(service, "crash")
            # By then the pauses between the starts are as long as they get.
            wait_until(functools.partial(has_failed, service, 7), 20, "it starts", pause_s=0.05)
            gate.unlink()
            total = until_answered(service, load)
        own = int(re.findall(r"was started again in (\d+) ms", service.wait_log("was started again"))[0]) / 1000
        took.append(total if counts_in == "memory" else total - own)
        assert "the program exited with status 1" in service.log
    assert sorted(took)[1] < RECOVERY_S, took


def test_one_that_always_dies_is_told_of_without_a_flood(guests: Guests, start: Start) -> None:
    service = start(storage=[guests.c("storage_service")])
    with Load(service.port, "/crash").from_clients(CLIENTS) as load:
        time.sleep(3)
        # Request VMs answer all the while what they can answer alone.
        assert all(service.ask("/open/nothing").body.startswith("[Errno 2]") for _ in range(20))
    failures = service.statistics()["storage.failures"]
    assert not load.numbers
    assert len(load.refused) > failures > 8
    for line in ("the storage program failed: ", "the storage program was started again"):
        assert 3 <= service.log.count(line) <= 5, service.story()
    wait_until(lambda: service.ask("/count").status == 200, 5, service.story())


def test_a_long_line_is_no_hang(start: Start, redis: RedisServer) -> None:
    """Who has waited too long is told so, and does not count; the program lives on, and does nothing in vain."""
    service = start("--max-storage-time", "1s", threads=8)
    with Load(service.port, "/sleep+250").from_clients(CLIENTS) as load:
        time.sleep(4)
    assert {answer.body[:11] for answer in load.refused} == {"[Errno 110]"}
    assert len(load.numbers) > 8
    assert missing(load, WARMUP + 1, redis.number()) == 0
    numbers = service.statistics()
    assert (numbers["storage.failures"], numbers["storage.starts"]) == (0, 1)


def hang_up(port: int, path: str, stop: threading.Event) -> None:
    """Ask, and go away before there is an answer."""
    while not stop.is_set():
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            time.sleep(0.02)


def test_requests_that_die_or_give_up_in_a_call_disturb_nobody(start: Start, redis: RedisServer) -> None:
    """Request VMs whose time is over in the middle of a call, that crash after one, or whose clients have gone."""
    service = start("--max-request-time", "400ms", threads=4)
    late = Load(service.port, "/late/300/sleep+200")
    dead = Load(service.port, "/dead/count")
    load = Load(service.port, "/count")
    stop = threading.Event()
    gone = threading.Thread(target=hang_up, args=(service.port, "/sleep+10", stop))
    gone.start()
    with late.from_clients(1), dead.from_clients(1), load.from_clients(4):
        time.sleep(4)
        stop.set()
    gone.join()
    assert {answer.status for answer in late.refused} == {504}
    assert {answer.status for answer in dead.refused} <= {502, 504}
    assert {answer.status for answer in load.refused} <= {504}
    assert len(late.refused) > 5
    assert len(dead.refused) > 5
    assert len(load.numbers) > 20
    wait_until(lambda: service.ask("/count").status == 200, 5, service.story())
    load.check_answers(redis.number())
    numbers = service.statistics()
    assert (numbers["storage.failures"], numbers["discarded"]) == (0, 0)
    # The last calls of all those may still have had their turn.
    assert redis.number() - WARMUP <= numbers["storage.calls"]
