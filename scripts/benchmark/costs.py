"""Measure what single steps cost: a system call that exits, page faults, exceptions, and a reset by pages.

A C program measures the first of them itself, in the middle of a request (scripts/bench_programs/costs.c), natively and
in request VMs; a reset's time and pages are kvmserver's own counters. Each figure is the median over the requests.
``exit`` and the kind of KVM are those of ``kvmserver doctor``.
"""

import argparse
import json
import statistics
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmark.server import Server
from benchmark.tools import COSTS_SOURCE, compile_program, free_port, kvmserver, machine

STEPS = {
    "call": "a system call",
    "snapshot_page_read": "first read of a page of the snapshot",
    "snapshot_page_written": "first write to a page of the snapshot",
    "fresh_page_written": "first write to a new anonymous page",
    "signal_by_call": "a signal that a call raises, and the return from it",
    "signal_by_exception": "a signal that an exception raises, and the return from it",
}
WRITTEN_PAGES = (0, 64, 512, 2048)
# A VM learns for 32 requests which pages to keep mapped: what comes before is not what stays.
LEARNING = 40


@dataclass
class Reset:
    """One kind of request and the mean reset after it."""

    hot_pages: int
    written: int
    dirty_pages: float
    reset_us: float


def ask(port: int, path: str) -> str:
    """The body of one answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return str(answer.read().decode())


def measure_steps(server: Server, requests: int) -> dict[str, float]:
    """The medians of what the program measures in itself."""
    ask(server.port, "/")
    rounds = [json.loads(ask(server.port, "/")) for _ in range(requests)]
    return {name: statistics.median(float(one[name]) for one in rounds) for name in STEPS}


def measure_reset(server: Server, hot_pages: int, written: int, requests: int) -> Reset:
    """The mean over some requests, behind those that the VM learns from."""
    for _ in range(LEARNING):
        ask(server.port, f"/write/{written}")
    before = server.counters()
    for _ in range(requests):
        ask(server.port, f"/write/{written}")
    after = server.counters()
    pages, nanoseconds, count = (
        after[name] - before[name] for name in ("totals.dirty_pages", "totals.reset_ns", "requests")
    )
    return Reset(hot_pages, written, pages / max(count, 1), nanoseconds / max(count, 1) / 1000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--requests", type=int, default=20, help="requests for each figure (default 20)")


def run(options: argparse.Namespace, console: Console) -> str:
    """Measure, show, and return everything as JSON."""
    steps: dict[str, dict[str, float]] = {}
    resets: list[Reset] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        program = compile_program(COSTS_SOURCE, directory)

        def start(stack: ExitStack, *words: str) -> Server:
            port = free_port()
            server = Server([*words, program, str(port)], port, directory, bool(words))
            stack.callback(server.stop)
            server.wait()
            return server

        isolated = (kvmserver(), "-e", "-t", "1", "--allow-all")
        with ExitStack() as stack:
            steps["native"] = measure_steps(start(stack), options.requests)

        # Without hot pages every request meets the pages as the first one after a fork does.
        for hot_pages in (0, 4096):
            variant = "isolated" if hot_pages == 0 else "isolated, pages kept mapped"
            with ExitStack() as stack:
                words = (*isolated, "--hot-pages", str(hot_pages))
                server = start(stack, *words, "--warmup", "5", "run")
                for _ in range(LEARNING):
                    ask(server.port, "/")
                steps[variant] = measure_steps(server, options.requests)
            for written in WRITTEN_PAGES:
                with ExitStack() as stack:
                    warmup = ("--warmup-request", f"GET /write/{written}")
                    server = start(stack, *words, *warmup, "run")
                    resets.append(measure_reset(server, hot_pages, written, options.requests))
    facts = machine()
    show(steps, resets, facts, console)
    return json.dumps({"machine": facts, "steps_ns": steps, "resets": [asdict(one) for one in resets]}, indent=2)


def show(steps: dict[str, dict[str, float]], resets: list[Reset], facts: dict[str, object], console: Console) -> None:
    """Two tables for people."""
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    table = Table(title="Steps within a request, microseconds")
    table.add_column("step")
    for variant in steps:
        table.add_column(variant, justify="right")
    for name, words in STEPS.items():
        table.add_row(words, *(f"{one[name] / 1000:,.2f}" for one in steps.values()))
    console.print(table)
    table = Table(title="Resets")
    for name in ("--hot-pages", "pages written", "dirty pages", "us"):
        table.add_column(name, justify="right")
    for one in resets:
        table.add_row(str(one.hot_pages), str(one.written), f"{one.dirty_pages:,.0f}", f"{one.reset_us:,.1f}")
    console.print(table)
