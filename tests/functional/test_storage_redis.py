"""Storage programs with a Redis server behind them: every number is given once, and request VMs have nothing of it."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from databases import PYTHON_GRANTS, READ, Load, RedisServer, python, redis_server
from harness import PROGRAMS, Kvmserver, Service, find_tool, free_port, wait_until

CLIENTS = 8
WRK_S = 10


@pytest.fixture
def redis(scratch: Path) -> Iterator[RedisServer]:
    with redis_server(scratch) as server:
        yield server


@dataclass(frozen=True)
class Pair:
    """A storage program that counts in Redis, and the server that asks it."""

    grants: tuple[str, ...]
    storage: list[str]
    request: list[str]


def pair(language: str) -> Pair:
    if language == "python":
        return Pair(PYTHON_GRANTS, python("storage_redis"), python("storage_request"))
    deno = Path(find_tool("deno"))
    # What Deno asks for is allowed by Deno: what is refused, kvmserver refuses.
    words = [str(deno), "run", "--allow-ffi", "--allow-net"]
    read = ",".join([*READ, str(deno.resolve().parent)])
    storage, request = (str(PROGRAMS / f"{side}_redis.ts") for side in ("storage", "request"))
    return Pair((f"--allow-read={read}",), [*words, storage], [*words, request])


Start = Callable[..., Service]


@pytest.fixture
def start(kvmserver: Kvmserver, redis: RedisServer) -> Start:
    """Starts a pair: the storage program may connect to Redis, request VMs may listen and nothing else."""

    def begin(language: str, warmup: int = 10) -> Service:
        port, programs = free_port(), pair(language)
        storage = [f"--allow-connect=127.0.0.1:{redis.port}", *programs.storage, str(redis.port)]
        request = [f"--allow-listen=:{port}", *programs.request, str(port)]
        return kvmserver.serve(request, port, threads=2, warmup=warmup, grants=programs.grants, storage=storage)

    return begin


LANGUAGES = pytest.mark.parametrize("language", ["deno", "python"])


def wrk(service: Service, redis: RedisServer, directory: Path) -> tuple[list[str], int]:
    """What wrk got in ten seconds, and a number that was given some time before it broke its last requests off."""
    answers = directory / "answers"
    words = [find_tool("wrk"), "-t1", f"-c{CLIENTS}", f"-d{WRK_S}", "-s", str(PROGRAMS / "collect.lua")]
    environment = os.environ | {"ANSWERS": str(answers)}
    url = f"http://127.0.0.1:{service.port}/count"
    with subprocess.Popen([*words, url], env=environment, stdout=subprocess.PIPE) as running:
        time.sleep(WRK_S - 2)
        assert running.poll() is None
        early = redis.number()
        output, _ = running.communicate(timeout=30)
    assert running.returncode == 0, output
    return answers.read_text().splitlines(), early


def settled(service: Service, redis: RedisServer) -> int:
    """The last number, when the requests that wrk has left behind are over, too."""

    def idle() -> bool:
        numbers = service.statistics()
        return numbers["storage.calls"] == numbers["responses"] == redis.number() - 1000

    wait_until(idle, 10, service.story(), pause_s=0.3)
    return redis.number()


@LANGUAGES
def test_request_k_answers_1000_plus_k(language: str, start: Start, redis: RedisServer) -> None:
    """One by one, and then from eight clients at once, who all wait for their last answers."""
    service = start(language, warmup=1000)
    assert [service.ask("/count").body for _ in range(5)] == [str(number) for number in range(1001, 1006)]
    with Load(service.port, "/count").from_clients(CLIENTS) as load:
        time.sleep(2)
    assert not load.refused
    assert sorted(load.numbers) == list(range(1006, redis.number() + 1))
    assert len(load.numbers) > 100
    assert service.statistics()["storage.failed_calls"] == 0


def test_wrk_gets_every_number_once(start: Start, redis: RedisServer, scratch: Path) -> None:
    """It breaks off what is in flight when its time is over: only of those requests the number may be missing."""
    service = start("deno", warmup=1000)
    lines, early = wrk(service, redis, scratch)
    last = settled(service, redis)
    assert {line.split()[0] for line in lines} == {"200"}
    numbers = [int(line.split()[1]) for line in lines]
    assert len(set(numbers)) == len(numbers)
    missing = set(range(1001, last + 1)) - set(numbers)
    assert len(numbers) + len(missing) == last - 1000
    assert len(missing) <= CLIENTS
    assert 1000 < early < min(missing, default=last)


@LANGUAGES
def test_a_request_vm_cannot_reach_redis_itself(language: str, start: Start, redis: RedisServer) -> None:
    service = start(language)
    for _ in range(3):
        answer = service.ask(f"/reach/{redis.port}")
        assert answer.status in (403, 503)
        assert "denied" in answer.body.lower()
    assert f"may not connect to 127.0.0.1:{redis.port}" in service.log
    assert service.ask("/count").body == "11"


@LANGUAGES
def test_its_timers_go_on_while_nobody_calls(language: str, start: Start, redis: RedisServer) -> None:
    service = start(language)
    first = redis.number("ticks")
    wait_until(lambda: redis.number("ticks") >= first + 10, 5, service.story())
    assert redis.number() == 10
    assert service.ask("/count").body == "11"


def test_the_clients_pool_makes_a_closed_connection_anew(start: Start, redis: RedisServer) -> None:
    service = start("python")
    first = service.ask("/connection").body
    assert service.ask("/connection").body == first
    redis.disconnect_all()
    # Its thread may have taken the first new one.
    assert int(service.ask("/connection").body) > int(first)
    ticks = redis.number("ticks")
    wait_until(lambda: redis.number("ticks") >= ticks + 3, 5, service.story())
    assert service.ask("/count").body == "14"
    numbers = service.statistics()
    assert (numbers["storage.failures"], numbers["storage.failed_calls"]) == (0, 0)
