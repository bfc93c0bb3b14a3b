"""A VM's thread waits awake for a request that comes soon after the last, and sleeps otherwise."""

import os
import time

import psutil
import pytest
from harness import Guests, Kvmserver, Service, free_port
from wire import GET, connect

REQUESTS = 200


def ask_on_one_connection(service: Service, port: int) -> float:
    """How many of the requests were found awake."""
    before = service.statistics()["awake_waits"]
    with connect(port) as wire:
        for _ in range(REQUESTS):
            wire.ask(GET)
    return service.statistics()["awake_waits"] - before


# By default it waits for less than a busy machine may give to others between two requests: some are found awake, that
# is all. The connection's beginning and its end may be, too.
@pytest.mark.parametrize(
    ("options", "low", "high"),
    [((), 1, REQUESTS + 2), (("--busy-poll", "1s"), REQUESTS / 2, REQUESTS + 2), (("--busy-poll", "0s"), 0, 0)],
)
def test_requests_that_follow_each_other_are_found_awake(
    options: tuple[str, ...], low: float, high: float, guests: Guests, kvmserver: Kvmserver
) -> None:
    port = free_port()
    # The verified reset lasts longer than the client needs for its next request.
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, *options, warmup=3)
    assert low <= ask_on_one_connection(service, port) <= high


def test_a_server_without_clients_sleeps(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, "--busy-poll", "1ms", warmup=3, threads=2)
    ask_on_one_connection(service, port)
    processes = psutil.Process(service.process.pid).children(recursive=True)

    def used_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before = used_s()
    time.sleep(2)
    # One wait of a millisecond at most, and the supervisor's looks; awake it would be two seconds.
    assert used_s() - before < 0.5


def test_on_one_cpu_nobody_waits_awake(guests: Guests, kvmserver: Kvmserver) -> None:
    cpus = os.sched_getaffinity(0)
    port = free_port()
    os.sched_setaffinity(0, {min(cpus)})
    try:
        service = kvmserver.serve([guests.c("server_epoll"), str(port)], port, warmup=3)
    finally:
        os.sched_setaffinity(0, cpus)
    assert ask_on_one_connection(service, port) == 0
