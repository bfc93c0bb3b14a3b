"""The first commands that a newcomer types: ``kvmserver demo`` and ``kvmserver doctor``."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import TESTS, Kvmserver, ask_often, free_port, wait_until

SLOW_EXIT_NS = 10_000

# What each entry of the doctor's "kvm" may be; those that are not here are booleans.
PLAUSIBLE: dict[str, Callable[[Any], bool]] = {
    "api_version": lambda value: value == 12,
    "entry": lambda value: value in ("user_mode", "supervisor_mode"),
    # Without it kvmserver would not have started.
    "immediate_exit": lambda value: value is True,
    "cpuid_entries": lambda value: is_number(value) and value > 10,
    "memslots": lambda value: is_number(value) and value >= 32,
    # x87 and SSE are always there; AMX (17, 18) and protection keys (9) are hidden from guests.
    "xcr0": lambda value: is_number(value) and value & 3 == 3 and not value & (1 << 9 | 1 << 17 | 1 << 18),
    "kind": lambda value: value == "unknown" or Path("/sys/module", value).is_dir(),
    "exit_ns": lambda value: is_number(value) and 0 < value < 1_000_000_000,
}


def is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_boolean(value: object) -> bool:
    return isinstance(value, bool)


def test_demo_shows_three_equal_answers_and_serves_on(kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.start("--verify-reset", "demo", "--port", str(port), port=port).wait_ready()
    wait_until(lambda: "until Ctrl-C" in service.output, 60, "the demo does not finish its comparison")
    rows = re.findall(r"request (\d) +(\d+) +\(([\d.]+) ms\) +(\d+) +\(([\d.]+) ms\)", service.output)
    assert [row[1] for row in rows] == ["101", "101", "101"]
    assert [row[3] for row in rows] == ["101", "102", "103"]
    assert ask_often(port, 100, 4) == {"101": 100}
    kvmserver.stop(service)


def test_doctor_finds_this_machine_fit(kvmserver: Kvmserver) -> None:
    done = kvmserver.run("doctor")
    assert done.returncode == 0, done.stdout.decode()
    assert b"/dev/kvm" in done.stdout
    report = kvmserver.run("doctor", "--json")
    content = json.loads(report.stdout)
    assert content["ok"] is True
    assert {check["name"] for check in content["checks"]} >= {"/dev/kvm", "KVM features", "memory"}


@pytest.fixture(scope="module")
def report(installed: Kvmserver) -> dict[str, Any]:
    """What ``kvmserver doctor --json`` prints on this machine."""
    content: dict[str, Any] = json.loads(installed.run("doctor", "--json").stdout)
    return content


def test_doctor_finds_what_its_page_explains_and_nothing_else(report: dict[str, Any]) -> None:
    page = (TESTS.parent / "docs" / "kvm.md").read_text()
    (section,) = re.findall(r"^## What the probes find\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    explained = re.findall(r"^\| `(\w+)` \| \S", section, re.MULTILINE)
    assert sorted(report["kvm"]) == sorted(explained)


def test_what_doctor_finds_is_plausible(report: dict[str, Any]) -> None:
    found = report["kvm"]
    assert set(found) >= set(PLAUSIBLE)
    assert [(name, value) for name, value in found.items() if not PLAUSIBLE.get(name, is_boolean)(value)] == []


def test_doctors_sentence_on_the_kind_of_kvm_is_about_what_it_measured(report: dict[str, Any]) -> None:
    found = report["kvm"]
    (check,) = [check for check in report["checks"] if check["name"] == "kind of KVM"]
    emulated = found["entry"] == "user_mode"
    slow = found["exit_ns"] >= SLOW_EXIT_NS
    kind = "without hardware virtualization" if emulated else "hardware virtualization"
    assert check["detail"].startswith(f"{kind} ({found['kind']})")
    assert f"an exit costs {found['exit_ns'] / 1000:.1f} us" in check["detail"]
    assert check["detail"].endswith(": full speed") == check["ok"] == (not emulated and not slow)
    assert bool(check["advice"]) == (emulated or slow)


def test_help_and_version(kvmserver: Kvmserver) -> None:
    shown = kvmserver.run("--help").stdout.decode()
    for option in (
        "--ephemeral",
        "--threads",
        "--warmup",
        "--allow-all",
        "--volume",
        "--max-request-time",
        "--verify-reset",
    ):
        assert option in shown
    assert re.fullmatch(r"kvmserver \d+\.\d+\.\d+\S*\n", kvmserver.run("--version").stdout.decode())
