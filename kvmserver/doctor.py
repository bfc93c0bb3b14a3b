"""``kvmserver doctor``: every requirement as one check that says ok, or why not and what to do.

A check is a function without arguments; CHECKS is the list, in the order in which they are shown. What is merely
recommended never makes the exit code 1.
"""

import ctypes
import functools
import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from kvmserver import fallbacks, machine

APT_LINE = (
    "apt-get install -y --no-install-recommends python3 python3-pip python3-venv gcc libc6-dev curl ca-certificates"
)

KERNEL_NEEDED = (5, 15)
MEMORY_RECOMMENDED_BYTES = 512 << 20
MAP_COUNT_NEEDED = 32 * 300 + 2000
OPEN_FILES_RECOMMENDED = 4096
KVM_API_VERSION = 12
KVM_NEEDED = ("immediate_exit",)
# An exit that takes longer is not one of hardware virtualization.
SLOW_EXIT_NS = 10_000

_NR_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1


@dataclass(frozen=True)
class Result:
    """One line of the report. ``needed`` tells whether kvmserver cannot run without it."""

    name: str
    ok: bool
    detail: str
    advice: str = ""
    needed: bool = True


def check_architecture() -> Result:
    """The data plane speaks x86-64 Linux only."""
    name = f"{platform.system()} {platform.machine()}"
    ok = (platform.system(), platform.machine()) == ("Linux", "x86_64")
    return Result("architecture", ok, name, "" if ok else "use an x86-64 machine with Linux")


def check_python() -> Result:
    """The version that the package needs."""
    ok = sys.version_info >= (3, 11)
    return Result("python", ok, platform.python_version(), "" if ok else "install Python 3.11 or newer")


def check_kvm_device() -> Result:
    """/dev/kvm exists and may be opened."""
    problem, hint = machine.kvm_problem()
    return Result("/dev/kvm", not problem, problem or "can be opened", hint)


@functools.cache
def probe_kvm() -> dict[str, Any] | Result:
    """What the data plane finds when it asks KVM, or why it cannot ask."""
    try:
        from kvmserver import _vmm
    except ImportError as error:
        return Result("KVM features", False, f"the extension is not installed: {error}", "pip install .")
    try:
        found: dict[str, Any] = json.loads(_vmm.probe())
    except _vmm.VmmError as error:
        message, hint = (*(str(part) for part in error.args[1:3]), "", "")[:2]
        return Result("KVM features", False, message or str(error), hint)
    return found


def check_kvm_features() -> Result:
    """All that this program needs of KVM."""
    found = probe_kvm()
    return found if isinstance(found, Result) else judge_kvm(found)


def check_kvm_replacements() -> Result:
    """Nothing of KVM has to be replaced by something slower."""
    found = probe_kvm()
    return judge_replacements({} if isinstance(found, Result) else found)


def check_kvm_speed() -> Result:
    """What kind of KVM this is, by what it does and not by its name, and what an exit costs."""
    found = probe_kvm()
    return judge_speed({} if isinstance(found, Result) else found)


def judge_kvm(found: dict[str, Any]) -> Result:
    """The probe's answer as a check: the API version and every capability that is missing."""
    version = found.get("api_version")
    if version != KVM_API_VERSION:
        return Result(
            "KVM features", False, f"KVM API version {version}, not {KVM_API_VERSION}", "use a current kernel"
        )
    if missing := [name for name in KVM_NEEDED if not found.get(name)]:
        return Result("KVM features", False, f"missing: {', '.join(missing)}", "use a newer kernel")
    facts = [f"{name} {_word(value)}" for name, value in found.items() if name not in ("api_version", *KVM_NEEDED)]
    return Result("KVM features", True, ", ".join(facts) or "all that are needed")


def judge_replacements(found: dict[str, Any]) -> Result:
    """Which features are absent that there is another way for."""
    missing = [name for name in fallbacks.SENTENCES if not found.get(name)]
    return Result(
        "kernel features",
        not missing,
        f"missing: {', '.join(missing)}" if missing else "all that kvmserver uses",
        fallbacks.advice(missing),
        False,
    )


def judge_speed(found: dict[str, Any]) -> Result:
    """A sentence on the kind of KVM."""
    exit_ns = found.get("exit_ns")
    if exit_ns is None:
        return Result("kind of KVM", False, "unknown", "see the lines above", needed=False)
    cost = f"an exit costs {exit_ns / 1000:.1f} us"
    if found.get("entry") == "user_mode":
        detail = f"without hardware virtualization ({found.get('kind')}): user code runs at full speed, and {cost}"
        advice = "expect a request to cost several times what it would on a machine with kvm_intel or kvm_amd"
        return Result("kind of KVM", False, detail, advice, needed=False)
    detail = f"hardware virtualization ({found.get('kind')}), and {cost}"
    if exit_ns < SLOW_EXIT_NS:
        return Result("kind of KVM", True, f"{detail}: full speed", needed=False)
    advice = "that is nested or emulated, and requests cost in proportion: use a machine of its own for speed"
    return Result("kind of KVM", False, detail, advice, needed=False)


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def check_kernel() -> Result:
    """The kernel's version."""
    release = platform.release()
    version = _kernel_version(release)
    ok = version >= KERNEL_NEEDED
    return Result("kernel", ok, release, "" if ok else f"use Linux {KERNEL_NEEDED[0]}.{KERNEL_NEEDED[1]} or newer")


def check_landlock() -> Result:
    """Landlock confines our own processes; without it one layer is missing, and nothing else."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_NR_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION)
    ok = abi >= 1
    advice = "" if ok else "boot with landlock among the kernel's lsm= modules"
    return Result("Landlock", ok, f"ABI {abi}" if ok else os.strerror(ctypes.get_errno()).lower(), advice, needed=False)


def check_memory() -> Result:
    """Memory that a program can still get."""
    available = psutil.virtual_memory().available
    ok = available >= MEMORY_RECOMMENDED_BYTES
    needed = available < machine.MEMORY_NEEDED_BYTES
    advice = "" if ok else f"free memory: {MEMORY_RECOMMENDED_BYTES >> 20} MiB are a good start"
    return Result("memory", ok, f"{available >> 20} MiB available", advice, needed=needed)


def check_cpus() -> Result:
    """CPUs that this process may use, which is what -t 0 means."""
    count = len(os.sched_getaffinity(0))
    ok = count >= 2
    advice = "" if ok else "with one CPU, requests and VMs take turns"
    return Result("CPUs", ok, f"{count} usable", advice, needed=False)


def check_map_count() -> Result:
    """vm.max_map_count bounds the mappings of a worker process: up to 300 for each of its VMs."""
    count = _read_number("/proc/sys/vm/max_map_count")
    ok = count >= MAP_COUNT_NEEDED
    advice = "" if ok else "sysctl vm.max_map_count=65530, or a smaller --vms-per-process"
    return Result("vm.max_map_count", ok, str(count), advice)


def check_open_files() -> Result:
    """Every connection and every VM takes descriptors. The hard limit counts: tenants raise the soft one to it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else sys.maxsize
    ok = limit >= OPEN_FILES_RECOMMENDED
    advice = "" if ok else f"raise it: ulimit -Hn {OPEN_FILES_RECOMMENDED}"
    return Result(
        "open files", ok, "unlimited" if hard == resource.RLIM_INFINITY else f"limit {hard}", advice, needed=False
    )


def check_overcommit() -> Result:
    """Guests reserve much more address space than they use, which strict accounting refuses."""
    mode = _read_number("/proc/sys/vm/overcommit_memory")
    ok = mode != 2
    return Result("vm.overcommit_memory", ok, str(mode), "" if ok else "sysctl vm.overcommit_memory=0")


def check_build_tools() -> Result:
    """What ``pip install .`` from the sources needs; an installed kvmserver runs without."""
    missing = [] if any(shutil.which(name) for name in ("cc", "gcc", "clang")) else ["a C compiler"]
    missing += [] if Path("/usr/include/stdlib.h").exists() else ["the C library's headers"]
    detail = f"missing: {', '.join(missing)}" if missing else "complete"
    return Result("build tools", not missing, detail, APT_LINE if missing else "", needed=False)


CHECKS: tuple[Callable[[], Result], ...] = (
    check_architecture,
    check_python,
    check_kernel,
    check_kvm_device,
    check_kvm_features,
    check_kvm_replacements,
    check_kvm_speed,
    check_landlock,
    check_memory,
    check_cpus,
    check_map_count,
    check_open_files,
    check_overcommit,
    check_build_tools,
)


def examine(checks: tuple[Callable[[], Result], ...] = CHECKS) -> list[Result]:
    """All results; a check that fails in itself is a failed check, not the end of the examination."""
    results = []
    for check in checks:
        try:
            results.append(check())
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            results.append(Result(name, False, f"cannot be checked: {error}", needed=False))
    return results


def run(as_json: bool) -> int:
    """Print the report; 1 if something that is needed is missing."""
    results = examine()
    healthy = all(result.ok or not result.needed for result in results)
    if as_json:
        found = probe_kvm()
        kvm = None if isinstance(found, Result) else found
        print(json.dumps({"ok": healthy, "kvm": kvm, "checks": [asdict(result) for result in results]}, indent=2))
    else:
        _print_table(results)
    return 0 if healthy else 1


def _print_table(results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for result in results:
        word, style = _verdict(result)
        text = f"{result.detail}: {result.advice}" if result.advice and not result.ok else result.detail
        table.add_row(f"[{style}]{word}[/]", result.name, text.replace("[", r"\["))
    # A pipe has no width of its own, and folded lines would be hard to grep.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _verdict(result: Result) -> tuple[str, str]:
    if result.ok:
        return "ok", "green"
    return ("missing", "red") if result.needed else ("warning", "yellow")


def _kernel_version(release: str) -> tuple[int, int]:
    numbers = release.split("-")[0].split(".")
    return int(numbers[0]), int(numbers[1])


def _read_number(path: str) -> int:
    return int(Path(path).read_text(encoding="ascii"))
