"""Experiments of their own, for single promises: two VMs on two CPUs, idle and slow connections, many VMs.

Each measures with and without in turn, so that a change of the machine's speed hits both.
"""

import argparse
import json
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmark import one_cpu, slow_clients, tables
from benchmark.load import wrk
from benchmark.measuring import start
from benchmark.problems import noted
from benchmark.programs import Program, make
from benchmark.results import KEPT, NATIVE, Checks, Pair, Report
from benchmark.server import Server
from benchmark.tools import machine
from benchmark.variants import RESET, VARIANTS, Variant

# The page takes so much longer than the client that a second VM can be seen; with C the client needs a CPU itself.
TWO_VMS_PROGRAMS = ("React page", "Deno hello", "C hello")
TWO_VMS_CLIENTS = 8
# Fewer say little: neighbours of a virtual machine take as much of one CPU as the two sides differ by.
TWO_VMS_ROUNDS = 8
# Both sides of a pair begin together, after the interpreters have started.
_LOOP = """
import time
time.sleep(0.3)
begin, turns = time.monotonic(), 0
while time.monotonic() - begin < 1:
    turns += sum(range(1000)) > 0
print(turns / (time.monotonic() - begin))
"""
IDLE_PROGRAM = "C hello"
IDLE_CONNECTIONS = 1000
IDLE_CLIENTS = 8
IDLE_ROUNDS = 16
MANY_PROGRAM = "Deno hello"
MANY_VMS = 200
MANY_ROUNDS = 3
_FORKED = re.compile(r"(\d+) request VMs in (\d+) process(?:es)? ready ([\d.]+) s after the snapshot")


def measure(report: Report, options: argparse.Namespace, directory: Path, console: Console) -> None:
    """All of them."""
    checks = report.checks
    experiments: list[tuple[str, Callable[[], None]]] = [
        ("two busy loops", partial(_two_loops, checks)),
        *((f"two VMs of {name}", partial(_two_vms, checks, name, options, directory)) for name in TWO_VMS_PROGRAMS),
        ("one CPU each", partial(_one_cpu, checks, options, directory)),
        ("idle connections", partial(_idle_connections, checks, options, directory)),
        ("slow connections", partial(_slow_connections, checks, options, directory)),
        (f"{MANY_VMS} VMs", partial(_many_vms, checks, directory)),
    ]
    for name, experiment in experiments:
        console.print(f"checking {name} ...", highlight=False)
        with noted(name, report, console):
            experiment()


def _two_vms(checks: Checks, name: str, options: argparse.Namespace, directory: Path) -> None:
    checks.two_vms[name], checks.two_natives[name] = _two(make(name, directory), options, directory)


def _one_cpu(checks: Checks, options: argparse.Namespace, directory: Path) -> None:
    checks.one_cpu = one_cpu.measure(options, directory)


def _idle_connections(checks: Checks, options: argparse.Namespace, directory: Path) -> None:
    checks.idle_connections = IDLE_CONNECTIONS
    checks.idle = _idle(make(IDLE_PROGRAM, directory), options, directory)


def _slow_connections(checks: Checks, options: argparse.Namespace, directory: Path) -> None:
    checks.slow_connections = slow_clients.CONNECTIONS
    checks.slow, checks.slow_vms_held = slow_clients.measure(options.rounds, options.seconds, directory)


def _many_vms(checks: Checks, directory: Path) -> None:
    program = make(MANY_PROGRAM, directory)
    for _ in range(MANY_ROUNDS):
        checks.many_vms, checks.many_vms_processes, seconds = _many(program, directory)
        checks.many_vms_s.append(seconds)


def _variant(name: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.name == name)


def _serve(program: Program, name: str, directory: Path, threads: int, stack: ExitStack) -> Server:
    server = start(program, _variant(name), directory, threads)
    assert server is not None
    stack.callback(server.stop)
    wrk(server.port, KEPT, 1, TWO_VMS_CLIENTS)
    return server


def _two(program: Program, options: argparse.Namespace, directory: Path) -> tuple[list[Pair], list[Pair]]:
    """One VM and two at the same load; and one native process and two, each with half of the load."""
    isolated, native = [], []
    with ExitStack() as stack:
        one, two = (_serve(program, RESET, directory, threads, stack) for threads in (1, 2))
        first, second = (_serve(program, NATIVE, directory, 1, stack) for _ in range(2))
        for turn in range(max(options.rounds, TWO_VMS_ROUNDS)):
            isolated.append(_pair([one], [two], options, turn))
            native.append(_pair([first], [first, second], options, turn))
    return isolated, native


def _pair(one: Sequence[Server], two: Sequence[Server], options: argparse.Namespace, turn: int) -> Pair:
    """One and two; every other time the two first, so that a machine that slows down favours neither."""
    if turn % 2:
        (with_it, cpus), (without, _) = _rate(two, options), _rate(one, options)
    else:
        (without, _), (with_it, cpus) = _rate(one, options), _rate(two, options)
    return Pair(without=without, with_it=with_it, client_cpus=cpus)


def _rate(servers: Sequence[Server], options: argparse.Namespace) -> tuple[float, float]:
    """Requests a second of all together, with TWO_VMS_CLIENTS in all; and how many CPUs the clients used."""
    clients = TWO_VMS_CLIENTS // len(servers)
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with ThreadPoolExecutor(len(servers)) as pool:
        runs = [pool.submit(wrk, server.port, KEPT, options.seconds, clients) for server in servers]
        rate = sum(run.result().requests_per_s for run in runs)
    # Of children that have ended, which the servers have not.
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return rate, used / (time.monotonic() - begin)


def _two_loops(checks: Checks) -> None:
    """What two CPUs of this machine do that one does not: a loop that needs nothing but a CPU, and two of them."""
    for _ in range(TWO_VMS_ROUNDS):
        checks.two_loops.append(Pair(without=_loops(1), with_it=_loops(2)))


def _loops(count: int) -> float:
    """Turns a second of so many busy processes together."""
    words = [sys.executable, "-c", _LOOP]
    loops = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return sum(float(loop.communicate()[0]) for loop in loops)


def _idle(program: Program, options: argparse.Namespace, directory: Path) -> list[Pair]:
    """Throughput without and with connections that have had one answer each and are kept."""
    pairs = []
    with ExitStack() as stack:
        server = _serve(program, RESET, directory, 1, stack)
        for _ in range(max(options.rounds, IDLE_ROUNDS)):
            without = wrk(server.port, KEPT, options.seconds, IDLE_CLIENTS).requests_per_s
            with ExitStack() as idle:
                for _ in range(IDLE_CONNECTIONS):
                    idle.enter_context(_kept_connection(server.port))
                with_it = wrk(server.port, KEPT, options.seconds, IDLE_CLIENTS).requests_per_s
            pairs.append(Pair(without=without, with_it=with_it))
    return pairs


def _kept_connection(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    if not client.recv(4096).startswith(b"HTTP/1.1 200"):
        raise RuntimeError("a connection that was to be idle had no good answer")
    return client


def _many(program: Program, directory: Path) -> tuple[int, int, float]:
    """VMs, their processes, and the seconds from the snapshot until all are ready."""
    server = start(program, _variant(RESET), directory, MANY_VMS, ("--verbose",))
    assert server is not None
    try:
        return parse_forked(server.log())
    finally:
        server.stop()


def parse_forked(log: str) -> tuple[int, int, float]:
    """What the supervisor logs when all workers are ready."""
    match = _FORKED.search(log)
    if match is None:
        raise RuntimeError("kvmserver does not log when its request VMs are ready")
    return int(match[1]), int(match[2]), float(match[3])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each experiment (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="length of one run of wrk (default 3)")


def run(options: argparse.Namespace, console: Console) -> str:
    """Measure, show, and return everything as JSON."""
    report = Report(machine=machine(), settings={"rounds": options.rounds, "seconds": options.seconds})
    with tempfile.TemporaryDirectory() as name:
        measure(report, options, Path(name), console)
    tables.show(report, console)
    return json.dumps(report.model_dump(mode="json"), indent=1)
