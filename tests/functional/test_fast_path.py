"""The in-guest fast path: what it saves, that it answers as the host does, and that a guest cannot misuse it."""

import http.client
import random
import re
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from harness import PROGRAMS, Guests, Kvmserver, Service, ask_often, find_tool, free_port, repetitions, wait_until

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
    service = kvmserver.serve(["--fast-path", *hello(program, port, guests)], port, warmup=100)
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


def test_the_whole_suite_can_do_without_it(
    guests: Guests, kvmserver: Kvmserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As .ci/run has it do: the environment decides where a test does not."""
    monkeypatch.setenv("KVMSERVER_TEST_OPTIONS", "--no-fast-path")
    for options, has_calls in [((), False), (("--fast-path",), True)]:
        port = free_port()
        costs = per_request(kvmserver.serve([*options, *hello("c", port, guests)], port, warmup=10))
        assert (costs["totals.calls_in_guest"] > 0) == has_calls


def exchange_half_closed(port: int, pieces: Iterable[bytes]) -> str:
    """Send everything and end this side; what comes until the other side ends its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    return answer.decode("latin-1")


def filling(seed: int) -> bytes:
    """What is behind the path, or the body: in one of four more than the fast path is told of at a time."""
    return b"x" * (seed % 700 if seed % 4 else 16_000 + seed * 37 % 30_000)


def in_pieces(seed: int) -> Iterator[bytes]:
    """What tests/guests/fast_path.c expects in its mode ``pieces``, in pieces of any length and at any moments."""
    dice = random.Random(seed)
    total = 3000 + seed * 7919 % 60000
    data = b"GET /%08d " % seed + bytes(97 + (at * 7 + at // 251 + seed) % 23 for at in range(total))
    while data:
        length = dice.choice((1, dice.randrange(1, 500), dice.randrange(1, 30_000)))
        yield data[:length]
        data = data[length:]
        time.sleep(dice.choice((0, 0, 0.0005, 0.003)))


def one_answer(mode: str, service: Service, seed: int) -> str:
    """What the program of random calls answers to a seed."""
    if mode == "pieces":
        return exchange_half_closed(service.port, in_pieces(seed))
    if mode == "raw":
        return exchange_half_closed(service.port, [b"GET /%08d %s" % (seed, filling(seed))])
    body = filling(seed) if seed % 4 == 0 else None
    answer = service.ask(f"/{seed:08}{'y' * (seed % 700)}", "POST" if body else "GET", body)
    assert answer.status == 200, service.story()
    return answer.body


def answers_of(
    mode: str, port: int, options: Sequence[str], seeds: Sequence[int], file: Path, guests: Guests, kvmserver: Kvmserver
) -> tuple[list[list[str]], dict[str, float]]:
    """What the program answers to each seed, and at the end what it found after its answers; and the counters."""
    protocol = [] if mode == "http" else ["--protocol", "tcp"]
    program = [*options, guests.c("fast_path"), str(port), mode, str(seeds[0]), str(file)]
    file.unlink(missing_ok=True)
    service = kvmserver.serve(program, port, *protocol)
    found = [one_answer(mode, service, seed).splitlines() for seed in seeds]
    # An answer that is whole is sent before its run is over.
    wait_until(
        lambda: file.exists() and file.read_text().count("ticks") == len(seeds), 20, "what was found after the answers"
    )
    numbers = service.statistics()
    kvmserver.stop(service)
    return [*found, file.read_text().splitlines()], numbers


@pytest.mark.parametrize("first_seed", range(4))
@pytest.mark.parametrize("mode", ["http", "raw"])
def test_random_calls_come_to_the_same_with_and_without_it(
    mode: str, first_seed: int, guests: Guests, kvmserver: Kvmserver, tmp_path: Path
) -> None:
    """Calls on connection, listener, epoll sets and eventfds, also after a shutdown, while a timer interrupts.

    With odd ``first_seed`` a second thread waits for what the first does.
    """
    seeds = range(first_seed * 1000, first_seed * 1000 + repetitions(40))
    # The port is part of what the program reads.
    port = free_port()
    inside, numbers = answers_of(mode, port, ("--fast-path",), seeds, tmp_path / "report", guests, kvmserver)
    outside, without = answers_of(mode, port, ("--no-fast-path",), seeds, tmp_path / "report", guests, kvmserver)
    assert numbers["totals.calls_in_guest"] > 50 * len(seeds)
    assert without["totals.calls_in_guest"] == 0
    for seed, mine, theirs in zip([*seeds, "after"], inside, outside, strict=True):
        assert mine == theirs, f"seed {seed}"
        assert {line for line in mine if line.startswith("ticks")} == {"ticks 0"}, f"seed {seed}"
    assert inside[-1].count("ticks 0") == len(seeds)


@pytest.mark.parametrize("option", ["--fast-path", "--no-fast-path"])
@pytest.mark.parametrize("first_seed", [0, 1000])
def test_what_arrives_meanwhile_is_read_as_it_was_sent(
    option: str, first_seed: int, guests: Guests, kvmserver: Kvmserver, tmp_path: Path
) -> None:
    """The program checks each result against what was sent and what the calls before it have come to."""
    seeds = range(first_seed, first_seed + repetitions(30))
    found, numbers = answers_of("pieces", free_port(), (option,), seeds, tmp_path / "report", guests, kvmserver)
    for seed, lines in zip(seeds, found[:-1], strict=True):
        total = 3000 + seed * 7919 % 60000
        # Before it a byte now and then, behind it what the program sent after that.
        report = [line.lstrip("w") for line in lines[: lines.index("ticks 0")]]
        report = [line for line in report if line != "order 8 " and not line.startswith("helper")]
        assert report == [f"pieces {total} of {total}, 0 wrong"], f"seed {seed}"
    assert found[-1].count("ticks 0") == len(seeds)
    assert (numbers["totals.calls_in_guest"] > 20 * len(seeds)) == (option == "--fast-path")


def end_of(service: Service, seed: int) -> str:
    """How a request ends whose program overwrites what is not its own."""
    try:
        return str(service.ask(f"/{seed:08}").status)
    except http.client.IncompleteRead:
        return "breaks off"


def test_garbage_in_its_memory_harms_only_the_request_itself(guests: Guests, kvmserver: Kvmserver) -> None:
    """The guest overwrites what the fast path knows, and its log: whatever becomes of that request, others go on."""
    port = free_port()
    program = ["--fast-path", guests.c("fast_path"), str(port), "garbage"]
    # Those that end up in an endless loop, or wait for what nobody does, need no longer.
    service = kvmserver.serve(program, port, "--max-request-time", "3")
    ends = [end_of(service, seed) for seed in range(max(repetitions(150), 30))]
    assert set(ends) <= {"200", "502", "504", "breaks off"}
    assert ends.count("200") > len(ends) / 15
    assert service.log.count("(the fast path's)") > 0
    assert service.process.poll() is None
    assert not re.search("panicked|differs|cannot reset|the virtual machine failed", service.log)
    kvmserver.stop(service)
