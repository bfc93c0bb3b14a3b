"""A byte that a request writes costs the host a page of 4 KiB, not a huge page."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import PROGRAMS, PYTHON, Kvmserver, ask, free_port, wait_until

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPPED_MIB = 512


@pytest.fixture
def huge_pages_always() -> Iterator[None]:
    """As Debian and Red Hat ship their kernels."""
    before = SWITCH.read_text().split("[")[1].split("]")[0]
    SWITCH.write_text("always")
    try:
        yield
    finally:
        SWITCH.write_text(before)


def resident_mib(process: psutil.Process) -> float:
    """Of all its children together."""
    return sum(child.memory_info().rss for child in process.children(recursive=True)) / (1 << 20)


@pytest.mark.usefixtures("huge_pages_always")
def test_memory_that_is_written_sparsely_costs_what_is_counted(kvmserver: Kvmserver) -> None:
    port = free_port()
    program = [PYTHON, str(PROGRAMS / "sparse.py"), str(port)]
    # 256 pages are written, 1 MiB, and as many page tables.
    service = kvmserver.serve(program, port, "--max-request-memory", "64MiB", "--max-request-time", "30s", warmup=3)
    process = psutil.Process(service.process.pid)
    before = resident_mib(process)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(ask(port, f"/{MAPPED_MIB}/2").body))
    asking.start()
    highest = before

    def is_answered() -> bool:
        nonlocal highest
        highest = max(highest, resident_mib(process))
        return bool(answers)

    wait_until(is_answered, 30, "no answer", 0.02)
    asking.join()
    assert answers == ["written"]
    assert highest - before < MAPPED_MIB / 8, f"{before:.0f} MiB before, {highest:.0f} MiB while 1 MiB is written"
