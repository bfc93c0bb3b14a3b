"""Measure request latency and throughput of kvmserver beside native, fork-per-request and process-per-request.

Every request comes over a new connection, from wrk. The variants of one program are all started first; then rounds of
short runs go through them in turn, so that a change of the machine's speed hits all alike. What is reported is the
median over the rounds, its spread (lowest to highest), and the ratio to native. p50 and p99 are wrk's, whose clock
starts when a connection is up; ``each`` is the time of a whole request with its connection, from one client.
The counters (exits, dirty pages, reset time) are kvmserver's own, taken with SIGUSR1 before and after the rounds.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmark.server import Server
from benchmark.tools import GUESTS, PROGRAMS, TESTS, compile_program, free_port, kvmserver, machine, tool

EXTRA_VMS = 8
VARIANTS = ("native", "isolated, no reset", "isolated, reset", "fork per request", "process per request")


@dataclass(frozen=True)
class Program:
    """One row of the table: how to start it natively, and the baselines (``{port}`` is filled in)."""

    name: str
    command: tuple[str, ...]
    fork: tuple[str, ...] | None
    process: tuple[str, ...]
    warmup: int


@dataclass
class Sample:
    """One run of wrk with one client, and one with several."""

    p50_us: float
    p99_us: float
    each_us: float
    requests_per_s: float
    errors: int


@dataclass
class Measured:
    """Everything about one variant of one program."""

    program: str
    variant: str
    samples: list[Sample] = field(default_factory=list)
    counters: dict[str, float] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """The median over the rounds."""
        return float(statistics.median(getattr(sample, name) for sample in self.samples))

    def spread(self, name: str) -> tuple[float, float]:
        """The lowest and the highest of the rounds."""
        values = [getattr(sample, name) for sample in self.samples]
        return min(values), max(values)


def programs(directory: Path) -> list[Program]:
    """The three rows."""
    epoll = compile_program(GUESTS / "server_epoll.c", directory)
    fork = compile_program(PROGRAMS / "fork_per_request.c", directory)
    inetd = compile_program(PROGRAMS / "process_per_request.c", directory)
    once = compile_program(PROGRAMS / "answer_once.c", directory)
    deno = tool("deno", "pip install deno")
    python = sys.executable
    hello = (deno, "run", "--allow-all", str(PROGRAMS / "hello.ts"), "{port}")
    once_ts = (inetd, "{port}", deno, "run", "--allow-all", str(PROGRAMS / "answer_once.ts"))
    http_server = (python, str(TESTS / "counter_http_server.py"), "{port}")
    once_py = (inetd, "{port}", python, str(PROGRAMS / "answer_once.py"))
    return [
        Program("C epoll", (epoll, "{port}"), (fork, "{port}"), (inetd, "{port}", once), 100),
        # A process with threads cannot be forked into a working copy, so Deno has no such baseline.
        Program("Deno hello", hello, None, once_ts, 1000),
        Program(
            "CPython http.server", http_server, (python, str(PROGRAMS / "fork_per_request.py"), "{port}"), once_py, 100
        ),
    ]


def command_of(program: Program, variant: str, port: int) -> list[str] | None:
    """The words that start a variant; None where there is no such variant."""
    words = {"fork per request": program.fork, "process per request": program.process}.get(variant, program.command)
    if words is None:
        return None
    filled = [word.replace("{port}", str(port)) for word in words]
    if not variant.startswith("isolated"):
        return filled
    isolated = [kvmserver(), "-t", "1", "--warmup", str(program.warmup), "--allow-all"]
    return [*isolated, *(["-e"] if variant == "isolated, reset" else []), "run", *filled]


def wrk(port: int, seconds: float, connections: int) -> dict[str, float]:
    """One run of wrk over new connections."""
    words = [
        tool("wrk", "apt-get install -y wrk"),
        "-t",
        "1",
        "-c",
        str(connections),
        "-d",
        f"{max(1, round(seconds))}s",
    ]
    words += ["-s", str(PROGRAMS / "report.lua"), "-H", "Connection: close", "--timeout", "10s"]
    done = subprocess.run([*words, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def sample(port: int, seconds: float, connections: int) -> Sample:
    """Latency from one client, throughput from several."""
    alone = wrk(port, seconds, 1)
    crowd = wrk(port, seconds, connections)
    requests = max(alone["requests"], 1)
    return Sample(
        p50_us=alone["p50_us"],
        p99_us=alone["p99_us"],
        each_us=alone["duration_us"] / requests,
        requests_per_s=crowd["requests"] / crowd["duration_us"] * 1e6,
        errors=int(alone["errors"] + crowd["errors"]),
    )


def per_request(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What one request cost, from two readings of the sums."""
    requests = after.get("requests", 0) - before.get("requests", 0)
    names = ("exits", "system_calls", "faults", "dirty_pages", "copied_pages", "dropped_pages", "reset_ns", "run_ns")
    if requests <= 0:
        return {}
    costs = {name: (after.get(f"totals.{name}", 0) - before.get(f"totals.{name}", 0)) / requests for name in names}
    return {"requests": requests, **costs}


def measure(program: Program, variants: Sequence[str], options: argparse.Namespace, directory: Path) -> list[Measured]:
    """All variants of one program, in interleaved rounds."""
    results: list[Measured] = []
    with ExitStack() as stack:
        running: list[tuple[Server, Measured]] = []
        for variant in variants:
            port = free_port()
            words = command_of(program, variant, port)
            if words is None:
                continue
            server = Server(words, port, directory, variant.startswith("isolated"))
            stack.callback(server.stop)
            server.wait()
            running.append((server, Measured(program.name, variant)))
        for server, _ in running:
            wrk(server.port, 1, 1)
        before = {server.port: server.counters() for server, _ in running if server.isolated}
        for _ in range(options.rounds):
            for server, measured in running:
                measured.samples.append(sample(server.port, options.seconds, options.connections))
        for server, measured in running:
            if server.isolated:
                measured.counters = per_request(before[server.port], server.counters())
            results.append(measured)
    return results


@dataclass
class Footprint:
    """What a program costs beside its requests."""

    program: str
    start_native_s: float
    start_isolated_s: float
    memory_mib: float
    memory_per_vm_mib: float


def footprint(program: Program, options: argparse.Namespace, directory: Path) -> Footprint:
    """Time from the command to the first answer (isolated: to the line ``Program``), and memory by number of VMs."""
    starts: dict[str, list[float]] = {"native": [], "isolated, reset": []}
    for _ in range(options.rounds):
        for variant, times in starts.items():
            port = free_port()
            words = command_of(dataclasses.replace(program, warmup=0), variant, port)
            assert words is not None
            begin = time.perf_counter()
            server = Server(words, port, directory, variant != "native")
            server.wait()
            times.append(time.perf_counter() - begin)
            server.stop()
    memory: dict[int, float] = {}
    for threads in (1, 1 + EXTRA_VMS):
        port = free_port()
        words = command_of(program, "isolated, reset", port)
        assert words is not None
        words[words.index("-t") + 1] = str(threads)
        server = Server(words, port, directory, True)
        server.wait()
        wrk(port, options.seconds, threads)
        memory[threads] = server.memory_mib()
        server.stop()
    added = (memory[1 + EXTRA_VMS] - memory[1]) / EXTRA_VMS
    native, isolated = (statistics.median(times) for times in starts.values())
    return Footprint(program.name, native, isolated, memory[1], added)


def show(results: Sequence[Measured], facts: dict[str, object], console: Console) -> None:
    """The table for people."""
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    table = Table(title="New connection for every request: median of the rounds (lowest to highest)")
    for name in ("program", "variant"):
        table.add_column(name, no_wrap=True)
    names = ("p50 us", "x native", "p99 us", "each us", "requests/s", "exits", "dirty pages", "reset us", "errors")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for measured in results:
        native = next((m for m in results if m.program == measured.program and m.variant == "native"), measured)
        low, high = measured.spread("p50_us")
        counters = measured.counters
        table.add_row(
            measured.program,
            measured.variant,
            f"{measured.median('p50_us'):,.0f} ({low:,.0f} to {high:,.0f})",
            f"{measured.median('p50_us') / max(native.median('p50_us'), 1):.1f}",
            f"{measured.median('p99_us'):,.0f}",
            f"{measured.median('each_us'):,.0f}",
            f"{measured.median('requests_per_s'):,.0f}",
            f"{counters['exits']:.1f}" if counters else "",
            f"{counters['dirty_pages']:.0f}" if counters else "",
            f"{counters['reset_ns'] / 1000:.1f}" if counters else "",
            str(sum(s.errors for s in measured.samples)),
        )
    console.print(table)


def show_footprints(footprints: Sequence[Footprint], console: Console) -> None:
    """Start-up and memory."""
    table = Table(title=f"Start without warm-up, and memory (from 1 to {1 + EXTRA_VMS} request VMs, all of them used)")
    table.add_column("program", no_wrap=True)
    for name in ("start native s", "start isolated s", "memory MiB", "per added VM MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in footprints:
        times = f"{one.start_native_s:.2f}", f"{one.start_isolated_s:.2f}"
        table.add_row(one.program, *times, f"{one.memory_mib:.0f}", f"{one.memory_per_vm_mib:.1f}")
    console.print(table)


def as_json(results: Sequence[Measured], footprints: Sequence[Footprint], facts: dict[str, object]) -> str:
    """Everything, for a machine."""
    rows = []
    for measured in results:
        names = ("p50_us", "p99_us", "each_us", "requests_per_s")
        medians = {name: measured.median(name) for name in names}
        rows.append({**asdict(measured), "median": medians, "spread": {name: measured.spread(name) for name in names}})
    shapes = [asdict(one) for one in footprints]
    return json.dumps({"machine": facts, "results": rows, "footprints": shapes}, indent=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds through all variants (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="length of one run of wrk (default 3)")
    parser.add_argument("--connections", type=int, default=4, help="clients of the throughput runs (default 4)")
    parser.add_argument(
        "--quick", action="store_true", help="one round of one second: figures to look at, not to quote"
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="only programs whose name contains TEXT")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only this variant (repeatable)")


def run(options: argparse.Namespace, console: Console) -> str:
    """Measure, show, and return everything as JSON."""
    if options.quick:
        options.rounds, options.seconds = 1, 1
    results: list[Measured] = []
    footprints: list[Footprint] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for program in programs(directory):
            if options.only.lower() in program.name.lower():
                console.print(f"measuring {program.name} ...", highlight=False)
                results += measure(program, options.variant or VARIANTS, options, directory)
                if not options.variant:
                    footprints.append(footprint(program, options, directory))
    facts = machine()
    show(results, facts, console)
    if footprints:
        show_footprints(footprints, console)
    return as_json(results, footprints, facts)
