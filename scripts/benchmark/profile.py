"""Tell where the microseconds of one request go: in the guest, in KVM, in the host's kernel, in kvmserver.

One client over a kept connection, a reset after every request. Three runs of wrk: one undisturbed, for the time of a
request and kvmserver's counters; one while ``perf`` samples the worker process; one while ``strace`` counts its system
calls. The time that the worker was on a CPU is divided by the requests and split by what the samples show; the rest of
a request is the client's, and waking up. Needs linux-perf and strace of Debian, and root.
"""

import argparse
import json
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel
from rich.console import Console

from benchmark import measuring, programs
from benchmark.load import wrk
from benchmark.results import KEPT
from benchmark.server import Server
from benchmark.tables import TextTable
from benchmark.tools import machine, tool
from benchmark.variants import RESET, VARIANTS

DEFAULT_PROGRAMS = ("C hello", "Deno hello")
FREQUENCY = 2999
# Interrupts are off while KVM goes into the guest, so that the timer of perf hits the first instruction behind that.
GUEST = "guest, and the way into it with interrupts off"
_US = 1e6

# What a call chain that has one of these functions is counted as; the first rule that fits.
_KVM_RULES = (
    (
        r"kvm_arch_vcpu_(load|put)|vcpu_(load|put)|kvm_(load|put)_guest_fpu",
        "KVM: taking the VCPU up and laying it down",
    ),
    (r"x86_emulate_instruction|emulate_trap", "KVM: supervisor code, interpreted"),
    (
        r"__get_sregs|__set_sregs|store_regs|sync_regs|kvm_get_regs|kvm_set_regs",
        "KVM: registers to and from user space",
    ),
    (r"page_fault|kvm_mmu_|tdp_|direct_map|mmu_notifier", "KVM: page faults and page tables"),
)
_KVM_OTHER = "KVM: entering and leaving, all else"
_KVM_RUN = re.compile(r"kvm_arch_vcpu_ioctl_run|kvm_vcpu_ioctl")
_SYSTEM_CALL = re.compile(r"__x64_sys_(\w+)")
_OURS = "kvmserver: the data plane (Rust)"
_COPIES = "kvmserver: memory copies"
_LIBRARY = "kvmserver: C library"
_KERNEL_OTHER = "host kernel: all else (interrupts, scheduler, faults)"
_SAMPLE_MODE = re.compile(r"PERF_RECORD_SAMPLE\(IP, 0x([0-9a-f]+)\)")
# The low three bits of a sample's mode: 4 and 5 are the kernel and the user space of a guest.
_MODE_MASK, _GUEST_MODES = 7, (4, 5)


class Profile(BaseModel):
    """One program: microseconds and system calls for each request."""

    program: str
    request_us: float
    run_us: float
    reset_us: float
    exits: float
    # While perf watched; the parts add up to the time on a CPU.
    requests: float
    parts_us: dict[str, float]
    host_calls: dict[str, float]


def classify(frames: Sequence[str]) -> str:
    """What a call chain belongs to; the innermost frame comes first."""
    chain = " ".join(frames)
    if _KVM_RUN.search(chain):
        return next((name for pattern, name in _KVM_RULES if re.search(pattern, chain)), _KVM_OTHER)
    if call := _SYSTEM_CALL.search(chain):
        return f"host kernel: {call[1]}"
    leaf = frames[0] if frames else ""
    if "kernel" in leaf:
        return _KERNEL_OTHER
    if "ioctl" in leaf:
        # The instruction behind the one that entered the kernel.
        return _KVM_OTHER
    if "mem" in leaf and "_erms" in leaf:
        return _COPIES
    return _OURS if "_vmm" in leaf else _LIBRARY


def parse_script(text: str) -> Counter[str]:
    """Samples by what they belong to, from ``perf script -F comm,tid,ip,sym,dso``."""
    found: Counter[str] = Counter()
    for block in text.split("\n\n"):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if len(lines) > 1:
            found[classify([line.partition(" ")[2] for line in lines[1:]])] += 1
    return found


def count_guest_samples(dump: str) -> int:
    """Samples that fell into the guest, which ``perf script`` leaves out, from ``perf report -D``."""
    return sum(int(mode, 16) & _MODE_MASK in _GUEST_MODES for mode in _SAMPLE_MODE.findall(dump))


def parse_strace(text: str) -> dict[str, int]:
    """Calls by name, from the table of ``strace -c``."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        # % time, seconds, usecs/call, calls, errors (where there are any), name
        words = line.split()
        if len(words) in (5, 6) and re.fullmatch(r"[\d.]+", words[0]) and words[-1] != "total":
            found[words[-1]] = int(words[3])
    return found


def measure(name: str, options: argparse.Namespace, directory: Path) -> Profile:
    """Three runs of one program."""
    reset = next(variant for variant in VARIANTS if variant.name == RESET)
    server = measuring.start(programs.make(name, directory), reset, directory)
    assert server is not None
    try:
        wrk(server.port, KEPT, 1, 1)
        costs, request_us = _undisturbed(server, options.seconds)
        parts, requests = _sampled(server, options.seconds, directory)
        calls = _traced(server, options.seconds, directory)
    finally:
        server.stop()
    return Profile(
        program=name,
        request_us=request_us,
        run_us=costs["run_ns"] / 1000,
        reset_us=costs["reset_ns"] / 1000,
        exits=costs["exits"],
        requests=requests,
        parts_us={part: count / FREQUENCY / requests * _US for part, count in parts.most_common()},
        host_calls=calls,
    )


def _undisturbed(server: Server, seconds: float) -> tuple[dict[str, float], float]:
    before = server.counters()
    sample = wrk(server.port, KEPT, seconds, 1)
    return _costs(before, server.counters()), sample.each_us


def _costs(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    measuring.add_difference(sums, before, after)
    costs = measuring.per_request(sums)
    if not costs:
        raise RuntimeError("no request was answered while it was measured")
    return costs


def _sampled(server: Server, seconds: float, directory: Path) -> tuple[Counter[str], float]:
    data = str(directory / "perf.data")
    perf = tool("perf", "apt-get install -y linux-perf")
    record = [perf, "record", "-q", "-o", data, "-g", "-F", str(FREQUENCY), "-e", "cpu-clock:GH", "-p", _worker(server)]
    costs = _watched(server, record, seconds)
    script = [perf, "script", "-i", data, "-F", "comm,tid,ip,sym,dso"]
    parts = parse_script(_quiet(script))
    parts[GUEST] = count_guest_samples(_quiet([perf, "report", "-D", "-i", data]))
    return parts, costs["requests"]


def _traced(server: Server, seconds: float, directory: Path) -> dict[str, float]:
    output = directory / "strace.txt"
    strace = tool("strace", "apt-get install -y strace")
    costs = _watched(server, [strace, "-c", "-f", "-o", str(output), "-p", _worker(server)], seconds)
    counts = parse_strace(output.read_text())
    return {call: count / costs["requests"] for call, count in sorted(counts.items(), key=lambda item: -item[1])}


def _watched(server: Server, watcher: list[str], seconds: float) -> dict[str, float]:
    """One run of wrk beside a program that watches the worker until it is interrupted."""
    with subprocess.Popen(watcher, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1)
        if process.poll() is not None:
            said = process.stderr.read() if process.stderr else ""
            raise RuntimeError(f"{' '.join(watcher)} ended: {said[-2000:]}")
        before = server.counters()
        wrk(server.port, KEPT, seconds, 1)
        after = server.counters()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    return _costs(before, after)


def _worker(server: Server) -> str:
    """The process that has the VM: the only one below the supervisor that has no children."""
    below = psutil.Process(server.process_id).children(recursive=True)
    return ",".join(str(process.pid) for process in below if not process.children())


def _quiet(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, errors="replace", check=True).stdout


def parts_table(profile: Profile) -> TextTable:
    """Where the time goes."""
    on_cpu = sum(profile.parts_us.values())
    rows = [(name, f"{us:.1f}", f"{us / on_cpu:.0%}") for name, us in profile.parts_us.items() if us >= 0.05]
    rows.append(("all of the worker's time on a CPU", f"{on_cpu:.1f}", "100%"))
    title = (
        f"{profile.program}: {profile.request_us:,.0f} us a request, of them {profile.run_us:,.0f} the run "
        f"({profile.exits:.1f} exits) and {profile.reset_us:,.1f} the reset"
    )
    return TextTable(title, ("what", "us a request", "share"), rows)


def calls_table(profile: Profile) -> TextTable:
    """What the host's kernel is asked."""
    rows = [(name, f"{count:.2f}") for name, count in profile.host_calls.items() if count >= 0.005]
    return TextTable(f"{profile.program}: system calls of the worker", ("call", "a request"), rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--seconds", type=float, default=5, help="length of each run (default 5)")
    parser.add_argument("--only", metavar="TEXT", default="", help="these programs instead of C hello and Deno hello")
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")


def run(options: argparse.Namespace, console: Console) -> str:
    """Measure, show, and return everything as JSON."""
    names = programs.chosen(options.only) if options.only else DEFAULT_PROGRAMS
    with tempfile.TemporaryDirectory() as directory:
        profiles = [measure(name, options, Path(directory)) for name in names]
    facts = machine()
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    for profile in profiles:
        for table in (parts_table(profile), calls_table(profile)):
            console.print(table.markdown() + "\n" if options.markdown else table.rich(), highlight=False)
    return json.dumps({"machine": facts, "profiles": [profile.model_dump() for profile in profiles]}, indent=1)
