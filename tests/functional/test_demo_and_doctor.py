"""The first commands that a newcomer types: ``kvmserver demo`` and ``kvmserver doctor``."""

import json
import re

from harness import Kvmserver, ask_often, free_port, wait_until


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
