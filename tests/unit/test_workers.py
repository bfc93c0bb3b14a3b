"""Workers: the threads are shared out evenly, and a worker that dies is replaced until the drain."""

import os
import signal
import socket
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmserver import channel
from kvmserver.channel import Channel, Message
from kvmserver.errors import KvmserverError, StartError
from kvmserver.workers import WorkerPool, shares

Serve = Callable[[int, int, int, bool], None]


@given(st.integers(1, 1024), st.integers(1, 256))
def test_shares_are_even_and_complete(threads: int, per_process: int) -> None:
    parts = shares(threads, per_process)
    assert sum(parts) == threads
    assert max(parts) <= per_process
    assert max(parts) - min(parts) <= 1
    assert len(parts) == -(-threads // per_process)


def serve_until_drained(number: int, threads: int, fd: int, is_first_life: bool) -> None:
    control = channel.from_fd(os.dup(fd))
    control.send({"event": "ready", "worker": number})
    for message in control.messages():
        if message["do"] == "drain":
            control.send({"event": "drained", "stats": {"threads": threads}})
            return
        control.send({"event": "log", "level": "info", "message": f"worker {number} got {message['do']}"})


def make_pool(serve: Serve, threads: list[int]) -> tuple[WorkerPool, Channel, list[Message]]:
    events: list[Message] = []
    ours, theirs = channel.pair()

    def serve_without_our_end(number: int, threads: int, fd: int, is_first_life: bool) -> None:
        # The real supervisor is another process, so that no worker can hold its end open.
        ours.close()
        serve(number, threads, fd, is_first_life)

    return WorkerPool(serve_without_our_end, threads, events.append, theirs), ours, events


def test_workers_start_answer_and_drain() -> None:
    pool, supervisor, events = make_pool(serve_until_drained, [2, 1])
    pool.start()
    supervisor.send({"do": "stats"})
    supervisor.send({"do": "drain"})
    pool.run()
    assert {e["message"] for e in events if e["event"] == "log"} == {"worker 0 got stats", "worker 1 got stats"}
    assert {e["worker"]: e["stats"]["threads"] for e in events if e["event"] == "drained"} == {0: 2, 1: 1}


def test_a_worker_that_dies_is_replaced() -> None:
    pool, supervisor, events = make_pool(serve_until_drained, [1])
    pool.start()
    first = pool._workers[0].pid
    os.kill(first, signal.SIGKILL)
    deadline_s = time.monotonic() + 10
    while not (pool._workers[0].ready and pool._workers[0].pid != first) and time.monotonic() < deadline_s:
        assert pool._turn()
    assert pool._workers[0].pid not in (0, first)
    assert events[-1]["message"] == "worker 0 ended (killed by signal 9 (SIGKILL)); starting it again in 0.1s"
    supervisor.send({"do": "drain"})
    pool.run()


def test_a_worker_knows_whether_it_is_the_first_of_its_number() -> None:
    def tell(number: int, threads: int, fd: int, is_first_life: bool) -> None:
        channel.from_fd(os.dup(fd)).send({"event": "log", "level": "info", "message": f"first: {is_first_life}"})
        serve_until_drained(number, threads, fd, is_first_life)

    pool, supervisor, events = make_pool(tell, [1])
    forked: list[int] = []
    pool.start(lambda: forked.append(pool._workers[0].pid))
    assert forked == [pool._workers[0].pid] != [0]
    os.kill(forked[0], signal.SIGKILL)
    while not (pool._workers[0].ready and pool._workers[0].pid != forked[0]):
        assert pool._turn()
    told = [event["message"] for event in events if event["message"].startswith("first")]
    assert told == ["first: True", "first: False"]
    supervisor.send({"do": "drain"})
    pool.run()


def fail_with_reason(number: int, threads: int, fd: int, is_first_life: bool) -> None:
    raise KvmserverError("cannot create a VM")


def fail_without_reason(number: int, threads: int, fd: int, is_first_life: bool) -> None:
    os._exit(3)


def panic(number: int, threads: int, fd: int, is_first_life: bool) -> None:
    raise BaseException("index out of bounds")


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        (fail_with_reason, "cannot create a VM"),
        (fail_without_reason, "worker 0 ended before it could serve"),
        (panic, "internal error: BaseException: index out of bounds"),
    ],
)
def test_a_worker_that_cannot_start_fails_the_start(serve: Serve, message: str) -> None:
    pool, _supervisor, _ = make_pool(serve, [1])
    with pytest.raises(StartError, match=message):
        pool.start()
    pool.kill()


def test_workers_end_with_their_supervisor() -> None:
    pool, supervisor, _ = make_pool(serve_until_drained, [1])
    pool.start()
    pid = pool._workers[0].pid
    supervisor.close()
    pool.run()
    assert os.waitpid(pid, 0)[1] in (0, signal.SIGKILL)


def test_a_worker_does_not_hold_descriptors_of_the_others() -> None:
    seen, tell = socket.socketpair()

    def count_descriptors(number: int, threads: int, fd: int, is_first_life: bool) -> None:
        tell.sendall(b"%d " % len(os.listdir("/proc/self/fd")))
        serve_until_drained(number, threads, fd, is_first_life)

    pool, supervisor, _ = make_pool(count_descriptors, [1, 1, 1])
    pool.start()
    supervisor.send({"do": "drain"})
    pool.run()
    counts = seen.recv(100).split()
    assert len(counts) == 3
    assert len(set(counts)) == 1
    seen.close()
    tell.close()
