"""Experiments of their own, for single promises: two VMs on two CPUs, idle and slow connections, many VMs.

Each measures with and without in turn, so that a change of the machine's speed hits both.
"""

import argparse
import json
import re
import socket
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmark import slow_clients, tables
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
IDLE_PROGRAM = "C hello"
IDLE_CONNECTIONS = 1000
IDLE_CLIENTS = 8
MANY_PROGRAM = "Deno hello"
MANY_VMS = 200
MANY_ROUNDS = 3
_FORKED = re.compile(r"(\d+) request VMs in (\d+) process(?:es)? ready ([\d.]+) s after the snapshot")


def measure(report: Report, options: argparse.Namespace, directory: Path, console: Console) -> None:
    """All of them."""
    checks = report.checks
    experiments: list[tuple[str, Callable[[], None]]] = [
        *((f"two VMs of {name}", partial(_two_vms, checks, name, options, directory)) for name in TWO_VMS_PROGRAMS),
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
        for _ in range(options.rounds):
            rates = [_rate([server], options) for server in (one, two)]
            isolated.append(Pair(without=rates[0], with_it=rates[1]))
            rates = [_rate(servers, options) for servers in ([first], [first, second])]
            native.append(Pair(without=rates[0], with_it=rates[1]))
    return isolated, native


def _rate(servers: Sequence[Server], options: argparse.Namespace) -> float:
    """Requests a second of all together, with TWO_VMS_CLIENTS in all."""
    clients = TWO_VMS_CLIENTS // len(servers)
    with ThreadPoolExecutor(len(servers)) as pool:
        runs = [pool.submit(wrk, server.port, KEPT, options.seconds, clients) for server in servers]
        return sum(run.result().requests_per_s for run in runs)


def _idle(program: Program, options: argparse.Namespace, directory: Path) -> list[Pair]:
    """Throughput without and with connections that have had one answer each and are kept."""
    pairs = []
    with ExitStack() as stack:
        server = _serve(program, RESET, directory, 1, stack)
        for _ in range(options.rounds):
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
