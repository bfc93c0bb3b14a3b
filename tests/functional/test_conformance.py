"""Our Linux answers as Linux does: each program of claims passes natively, and prints the same lines in a guest."""

import subprocess
from pathlib import Path

import pytest
from harness import EchoPeers, Guests, Kvmserver, clean_environment

FAMILIES = [
    "files",
    "memory",
    "signals",
    "threads",
    "events",
    "sockets",
    "clocks",
    "identity",
    "pseudo",
    "registers",
]


def arguments(family: str, directory: Path, peers: EchoPeers) -> list[str]:
    match family:
        case "files" | "pseudo":
            directory.mkdir()
            return [str(directory)]
        case "sockets":
            return [str(peers.directory), str(peers.tcp_port), str(peers.udp_port)]
        case "identity":
            return ["two words", "", "\u00e4\"'$\\"]
    return []


def failed(output: str) -> list[str]:
    return [line for line in output.splitlines() if not line.startswith("ok ")]


def run_natively(program: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = clean_environment({"NATIVE": "1"})
    return subprocess.run([program, *words], capture_output=True, text=True, env=environment, timeout=120)


CASES = [(family, "dynamic") for family in FAMILIES]
# K19: small static programs too, with the default settings.
CASES += [
    ("memory", "static"),
    ("clocks", "static"),
    ("clocks", "musl"),
    ("threads", "static"),
    ("signals", "static-pie"),
]


def check_claims(
    family: str, flavour: str, guests: Guests, kvmserver: Kvmserver, peers: EchoPeers, scratch: Path
) -> None:
    """The program of claims passes natively, and says the same in a guest."""
    program = guests.c(f"conform_{family}", flavour)
    native = run_natively(program, arguments(family, scratch / "native", peers))
    assert not failed(native.stdout), f"native Linux fails the claims:\n{native.stdout}{native.stderr}"
    assert native.returncode == 0
    guest = kvmserver.run("--allow-all", "run", program, *arguments(family, scratch / "guest", peers), timeout_s=240)
    output = guest.stdout.decode(errors="replace")
    problems = "\n".join(failed(output))
    assert not problems, f"{problems}\n{guest.stderr.decode(errors='replace')[-3000:]}"
    assert output.splitlines() == native.stdout.splitlines(), guest.stderr.decode(errors="replace")[-3000:]
    assert guest.returncode == 0


@pytest.mark.parametrize(("family", "flavour"), CASES)
def test_guest_prints_the_same_claims_as_native(
    family: str, flavour: str, guests: Guests, kvmserver: Kvmserver, peers: EchoPeers, scratch: Path
) -> None:
    check_claims(family, flavour, guests, kvmserver, peers, scratch)
