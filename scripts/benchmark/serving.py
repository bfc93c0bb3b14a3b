"""Measure what a request costs: natively, isolated by kvmserver, and isolated by what an operating system offers.

All variants of a program are started first; then rounds of short runs go through them in turn, so that a change of the
machine's speed hits all alike. Reported are medians over the rounds with their spread, and ratios to native over the
same kind of connections. The counters (exits, pages, reset time) are kvmserver's own. At the end comes a table of what
was promised and what was found. Parts: closed (wrk), open (a constant rate), footprints (start and memory), checks
(two VMs, idle connections, many VMs).
"""

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console

from benchmark import checks, measuring, programs, tables
from benchmark.problems import noted
from benchmark.results import KEPT, NEW, Report
from benchmark.tools import machine
from benchmark.variants import NAMES

PARTS = ("closed", "open", "footprints", "checks")
_PROGRAM_PARTS = {"closed", "open", "footprints"}
CONNECTIONS = (1, 2, 8, 64)
QUICK_CONNECTIONS = (1, 8)


def run(options: argparse.Namespace, console: Console) -> str:
    """Measure, show, and return everything as JSON; what there is so far is also in the file after each program."""
    _complete(options)
    report = Report(machine=machine(), settings={"rounds": options.rounds, "seconds": options.seconds})
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for program in programs.chosen(options.only) if _PROGRAM_PARTS & set(options.parts) else ():
            with noted(program, report, console):
                _measure(program, options, directory, report, console)
            _save(options, report)
        if "checks" in options.parts:
            checks.measure(report, options, directory, console)
    tables.show(report, console)
    return as_json(report)


def _save(options: argparse.Namespace, report: Report) -> None:
    if options.json is not None and str(options.json) != "-":
        options.json.write_text(as_json(report) + "\n")


def _measure(name: str, options: argparse.Namespace, directory: Path, report: Report, console: Console) -> None:
    console.print(f"measuring {name} ...", highlight=False)
    program = programs.make(name, directory)
    report.page = program.page or report.page
    if {"closed", "open"} & set(options.parts):
        report.rows += measuring.measure(program, options, directory)
    if "footprints" in options.parts:
        report.footprints.append(measuring.footprint(program, options, directory))


def as_json(report: Report) -> str:
    """Everything, for a machine; with the medians, which a reader would otherwise have to take."""
    summary = [
        {"program": row.program, "variant": row.variant, "connections": row.kind, "clients": clients}
        | {name: row.median(name, clients) for name in ("p50_us", "p99_us", "each_us", "requests_per_s")}
        for row in report.rows
        for clients in row.closed
    ]
    return json.dumps({**report.model_dump(mode="json"), "medians": summary}, indent=1)


def _complete(options: argparse.Namespace) -> None:
    """The defaults that depend on other options."""
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    options.connections = options.connections or (QUICK_CONNECTIONS if options.quick else CONNECTIONS)
    # A part of the programs is no whole run: the experiments have programs of their own.
    partly = tuple(part for part in PARTS if part in _PROGRAM_PARTS) if options.only or options.variant else PARTS
    options.parts = options.parts or (("closed",) if options.quick else partly)
    if "open" in options.parts and "closed" not in options.parts:
        # The rates are shares of what the closed loop reaches.
        options.parts = (*options.parts, "closed")
    options.variant = options.variant or NAMES
    options.kinds = options.kind or (KEPT, NEW)


def numbers(text: str) -> tuple[int, ...]:
    """Numbers of clients. Raises ValueError."""
    found = tuple(int(word) for word in text.split(","))
    if not all(1 <= number <= 4096 for number in found):
        raise ValueError(text)
    return found


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(PARTS)}")
    return parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds through all variants (default 5)")
    parser.add_argument("--seconds", type=float, default=2, help="length of one run (default 2)")
    parser.add_argument("--connections", type=numbers, metavar="N,..", help="numbers of clients (default 1,2,8,64)")
    parser.add_argument("--parts", type=_parts, metavar="PART,..", help=f"what to measure: {', '.join(PARTS)}")
    parser.add_argument(
        "--quick", action="store_true", help="one round of one second, part closed: to look at, not to quote"
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="only programs with this word, or else this text")
    parser.add_argument("--variant", action="append", choices=NAMES, help="only this variant (repeatable)")
    parser.add_argument("--kind", action="append", choices=(KEPT, NEW), help="only such connections (repeatable)")
