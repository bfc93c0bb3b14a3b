"""The in-guest fast path: what it saves, that it answers as the host does, and that a guest cannot misuse it."""

import http.client
import re
import socket
from collections.abc import Sequence

import pytest
from harness import PROGRAMS, Guests, Kvmserver, Service, ask_often, find_tool, free_port

BENCH_PROGRAMS = PROGRAMS.parent.parent / "scripts" / "bench_programs"
REQUESTS = 100


def hello(program: str, port: int, guests: Guests) -> Sequence[str]:
    """The command of a server that answers every request alike."""
    match program:
        case "c":
            return [guests.c("server_epoll"), str(port)]
        case "deno":
            return [find_tool("deno"), "run", "-A", str(BENCH_PROGRAMS / "hello.ts"), str(port)]
        case "go":
            return [guests.go(), str(port)]
        case _:
            return [find_tool("node"), str(PROGRAMS / "counter.js"), str(port)]


def per_request(service: Service, requests: int = REQUESTS) -> dict[str, float]:
    """What a request costs, from the counters."""
    before = service.statistics()
    answers = ask_often(service.port, requests)
    assert list(answers.values()) == [requests], answers
    after = service.statistics()
    return {name: (value - before.get(name, 0)) / requests for name, value in after.items()}


@pytest.mark.parametrize(("program", "most"), [("c", 2), ("deno", 2), ("go", 4), ("node", 4)])
def test_a_request_costs_few_exits(program: str, most: int, guests: Guests, kvmserver: Kvmserver) -> None:
    """The close of the connection is the exit; what is more has a name in docs/architecture.md."""
    port = free_port()
    service = kvmserver.serve(hello(program, port, guests), port, warmup=100)
    ask_often(port, 20)
    costs = per_request(service)
    assert costs["totals.exits"] <= most
    assert costs["totals.calls_in_guest"] >= 5


def test_without_it_every_call_exits(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve(["--no-fast-path", *hello("c", port, guests)], port, warmup=10)
    costs = per_request(service)
    assert costs["totals.calls_in_guest"] == 0
    assert costs["totals.exits"] >= 7


def exchange_half_closed(port: int, data: bytes) -> str:
    """Send everything and end this side; what comes until the other side ends its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    return answer.decode("latin-1")


def answers_of(
    mode: str, port: int, options: Sequence[str], seeds: Sequence[int], guests: Guests, kvmserver: Kvmserver
) -> tuple[list[str], dict[str, float]]:
    """What the program of random calls answers to each seed."""
    protocol = ["--protocol", "tcp"] if mode == "raw" else []
    program = [*options, guests.c("fast_path"), str(port), mode, str(seeds[0])]
    service = kvmserver.serve(program, port, *protocol)
    if mode == "raw":
        found = [exchange_half_closed(port, b"GET /%08d %s" % (seed, b"x" * (seed % 700))) for seed in seeds]
    else:
        answers = [service.ask(f"/{seed:08}{'y' * (seed % 700)}") for seed in seeds]
        assert [answer.status for answer in answers] == [200] * len(seeds), service.story()
        found = [answer.body for answer in answers]
    numbers = service.statistics()
    kvmserver.stop(service)
    return found, numbers


@pytest.mark.parametrize("first_seed", range(4))
@pytest.mark.parametrize("mode", ["http", "raw"])
def test_random_calls_come_to_the_same_with_and_without_it(
    mode: str, first_seed: int, guests: Guests, kvmserver: Kvmserver
) -> None:
    """Calls on connection, listener, epoll sets and eventfds, while a timer interrupts at random moments."""
    seeds = range(first_seed * 1000, first_seed * 1000 + 40)
    # The port is part of what the program reads.
    port = free_port()
    inside, numbers = answers_of(mode, port, (), seeds, guests, kvmserver)
    outside, without = answers_of(mode, port, ("--no-fast-path",), seeds, guests, kvmserver)
    assert numbers["totals.calls_in_guest"] > 50 * len(seeds)
    assert without["totals.calls_in_guest"] == 0
    for seed, mine, theirs in zip(seeds, inside, outside, strict=True):
        assert mine.splitlines() == theirs.splitlines(), f"seed {seed}"


def end_of(service: Service, seed: int) -> str:
    """How a request ends whose program overwrites what is not its own."""
    try:
        return str(service.ask(f"/{seed:08}").status)
    except http.client.IncompleteRead:
        return "breaks off"


def test_garbage_in_its_memory_harms_only_the_request_itself(guests: Guests, kvmserver: Kvmserver) -> None:
    """The guest overwrites what the fast path knows, and its log: whatever becomes of that request, others go on."""
    port = free_port()
    service = kvmserver.serve([guests.c("fast_path"), str(port), "garbage"], port)
    ends = [end_of(service, seed) for seed in range(150)]
    assert set(ends) <= {"200", "502", "504", "breaks off"}
    assert ends.count("200") > 10
    assert service.log.count("(the fast path's)") > 0
    assert service.process.poll() is None
    assert not re.search("panicked|differs|cannot reset|the virtual machine failed", service.log)
    kvmserver.stop(service)
