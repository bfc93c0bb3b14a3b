"""Load: wrk, whose clients each wait for an answer before they ask again, and requests at a constant rate."""

import json
import subprocess
from pathlib import Path

from benchmark.results import KEPT, OpenSample, Sample
from benchmark.tools import PROGRAMS, compile_program, tool


def wrk(port: int, kind: str, seconds: float, clients: int) -> Sample:
    """One run of wrk with one thread."""
    return parse_wrk(run_wrk(port, kind, seconds, clients), clients)


def run_wrk(port: int, kind: str, seconds: float, clients: int, timeout_s: int = 10) -> str:
    """What wrk prints; an answer that takes longer than ``timeout_s`` counts as an error."""
    words = [tool("wrk", "apt-get install -y wrk"), "-t", "1", "-c", str(clients), "-d", f"{max(1, round(seconds))}s"]
    words += ["-s", str(PROGRAMS / "report.lua"), "--timeout", f"{timeout_s}s"]
    words += [] if kind == KEPT else ["-H", "Connection: close"]
    done = subprocess.run([*words, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True)
    return done.stdout


def wrk_figures(output: str) -> dict[str, int]:
    """The line of report.lua, which comes last."""
    figures: dict[str, int] = json.loads(output.splitlines()[-1])
    return figures


def parse_wrk(output: str, clients: int) -> Sample:
    """What wrk has printed, as a sample."""
    figures = wrk_figures(output)
    requests, duration_us = figures["requests"], figures["duration_us"]
    if requests == 0:
        # Nothing was answered: whoever asked has waited for the whole run.
        figures |= dict.fromkeys(("p50_us", "p99_us", "max_us"), duration_us)
    return Sample(
        p50_us=figures["p50_us"],
        p99_us=figures["p99_us"],
        max_us=figures["max_us"],
        each_us=duration_us * clients / max(requests, 1),
        requests_per_s=requests / duration_us * 1e6,
        errors=figures["errors"],
    )


class ConstantRate:
    """The open loop: constant_rate.c, compiled."""

    def __init__(self, directory: Path) -> None:
        self._program = compile_program(PROGRAMS / "constant_rate.c", directory)

    def run(self, port: int, kind: str, rate: float, seconds: float, connections: int) -> OpenSample:
        """Requests at ``rate`` a second, over at most so many connections at a time."""
        numbers = [str(port), f"{rate:.3f}", f"{seconds:.3f}", str(connections)]
        words = [self._program, *numbers, "keep" if kind == KEPT else "new"]
        return parse_constant_rate(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def parse_constant_rate(output: str) -> OpenSample:
    """Its one line."""
    figures = json.loads(output)
    return OpenSample(requests_per_s=figures["requests"] / figures["seconds"], **figures)
