"""No request sees anything of an earlier one: each plants a 128-bit secret wherever it can, and all look for them."""

import secrets

from harness import Guests, Kvmserver, ask, free_port, native, repetitions

FACTOR = 0x9E3779B97F4A7C15
ROUNDS = 1000

# What the search must be able to find; natively, where nothing is ever reset, it has to find all of it.
KINDS = [
    "register general",
    "register x87",
    "register xmm",
    "register x87-control",
    "register mxcsr",
    "register gs-base",
    "descriptor count",
    "file offset",
    "file status flags",
    "descriptor flags",
    "eventfd content",
    "pipe content",
    "timerfd setting",
    "signal handler",
    "signal alternate stack",
    "signal mask",
    "signal pending",
    "interval timer",
    "resource limit",
    "thread name",
    "working directory",
    "umask",
    "environment",
    "program break",
    "global counter",
    "unmapped page of a mapping",
    "memory [heap]",
    "memory [stack]",
    "memory anonymous",
    "canary",
]


class Planter:
    """Makes requests whose secrets share a tag, so that one search finds the secrets of all earlier ones."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._needle = secrets.randbits(64) * FACTOR % 2**64

    def plant(self) -> str:
        return ask(self._port, f"/plant?needle={self._needle:x}&value={secrets.randbits(64):x}").body


def test_search_finds_every_kind_of_leak_natively(guests: Guests) -> None:
    port = free_port()
    with native([guests.c("canary"), str(port), "/etc/hostname"], port):
        planter = Planter(port)
        assert planter.plant() == "clean\n"
        for _ in range(2):
            found = planter.plant()
            assert not [kind for kind in KINDS if kind not in found], found


def test_without_isolation_the_leaks_are_found_in_a_guest_too(guests: Guests, kvmserver: Kvmserver) -> None:
    """The same, in a VM that is not reset: the guest's own Linux keeps what a request leaves behind."""
    port = free_port()
    words = ["-t", "1", "--warmup", "3", "--allow-all", "run", guests.c("canary"), str(port), "/etc/hostname"]
    service = kvmserver.start(*words, port=port).wait_ready()
    planter = Planter(port)
    assert planter.plant() == "clean\n"
    found = planter.plant()
    assert not [kind for kind in KINDS if kind not in found], found
    kvmserver.stop(service)


def check_secrets(rounds: int, guests: Guests, kvmserver: Kvmserver) -> None:
    """No request finds anything of what the requests before it have left wherever a program can leave something."""
    port = free_port()
    program = [guests.c("canary"), str(port), "/etc/hostname"]
    service = kvmserver.serve(program, port, threads=2, warmup=10)
    planter = Planter(port)
    for number in range(repetitions(rounds)):
        assert planter.plant() == "clean\n", f"after {number} requests"
    kvmserver.stop(service)


def test_a_thousand_secrets_are_never_seen_again(guests: Guests, kvmserver: Kvmserver) -> None:
    check_secrets(ROUNDS, guests, kvmserver)
