"""Machine code that a program makes at run time: right, as fast as natively, in threads and after a reset."""

import re
import subprocess

from harness import Guests, Kvmserver, free_port, native, repetitions


def times(text: str) -> tuple[int, int]:
    match = re.search(r"generated (\d+) compiled (\d+)", text)
    assert match, text
    return int(match[1]), int(match[2])


def test_code_made_in_every_request(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("run_time_code"), str(port)], port, threads=2, warmup=10)
    for _ in range(repetitions(300)):
        assert service.ask().body == "11 ok\n"
    kvmserver.stop(service)


def test_code_patched_for_good_is_undone_by_a_reset(guests: Guests, kvmserver: Kvmserver) -> None:
    """The same program without a reset notices the patch: the check can fail."""
    port = free_port()
    with native([guests.c("run_time_code"), str(port)], port):
        from harness import ask

        assert ask(port, "/patch").body == "1 ok\n"
        assert ask(port, "/patch").body == "2 code of an earlier request\n"
    service = kvmserver.serve([guests.c("run_time_code"), str(port)], port, warmup=5)
    for _ in range(repetitions(200)):
        assert service.ask("/patch").body == "6 ok\n"
    kvmserver.stop(service)


def test_generated_code_is_as_fast_as_natively(guests: Guests, kvmserver: Kvmserver) -> None:
    program = guests.c("run_time_code")
    natively = min(
        times(subprocess.run([program, "once"], capture_output=True, text=True, check=True).stdout)[0] for _ in range(2)
    )
    port = free_port()
    service = kvmserver.serve([program, str(port)], port, warmup=2)
    generated, compiled = (
        min(pair) for pair in zip(*(times(service.ask("/speed").body) for _ in range(3)), strict=True)
    )
    assert generated < 2 * compiled, "generated and compiled code run in one guest"
    assert generated < 3 * natively
    kvmserver.stop(service)
