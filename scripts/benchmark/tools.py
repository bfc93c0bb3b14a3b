"""What every benchmark needs: the tools of the system, compiled programs, and facts about the machine."""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = ROOT / "scripts" / "bench_programs"
GUESTS = ROOT / "tests" / "guests"
TESTS = ROOT / "tests" / "programs"

# Programs that were compiled elsewhere, for a machine without a compiler (scripts/kvm-amd).
COMPILED = "KVMSERVER_BENCH_COMPILED"
# All that it takes along.
COMPILED_SOURCES = (
    GUESTS / "server_epoll.c",
    PROGRAMS / "fork_per_request.c",
    PROGRAMS / "process_per_request.c",
    PROGRAMS / "answer_once.c",
    PROGRAMS / "costs.c",
)
COSTS_SOURCE = PROGRAMS / "costs.c"


def tool(name: str, hint: str) -> str:
    """The path of a tool; ends the script with what to install where it is missing."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        sys.exit(f"error: {name} is missing\n\nhint: {hint}")
    return found


def kvmserver() -> str:
    """The path of the installed command."""
    return tool("kvmserver", "pip install .")


def compile_program(source: Path, directory: Path, *options: str) -> str:
    """The path of a compiled C program; ``options`` come last, as libraries have to."""
    if (compiled := os.environ.get(COMPILED)) and (Path(compiled) / source.stem).exists():
        return str(Path(compiled) / source.stem)
    output = directory / source.stem
    words = [tool("cc", "apt-get install -y gcc libc6-dev"), "-O2", "-pthread", f"-I{GUESTS}"]
    subprocess.run([*words, "-o", str(output), str(source), *options], check=True)
    return str(output)


def output_of(words: Sequence[str]) -> str:
    """The standard output of a program."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def free_port() -> int:
    """A port of the loopback interface that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _commit() -> str:
    """Of this working tree; ``+`` where it was changed since."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    try:
        return output_of(words).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, object]:
    """What was measured on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    facts: dict[str, object] = {
        "cpu": model[1] if model else platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
    }
    try:
        from kvmserver import _vmm

        found = json.loads(_vmm.probe())
        facts["kvm"] = found.get("kind", "unknown")
        facts["exit_ns"] = found.get("exit_ns")
    except Exception as error:
        facts["kvm"] = f"unknown ({error})"
    return facts
