"""T16, the property behind it all: after any system calls and memory writes, a reset equals a fresh fork.

A guest describes its state in every answer and then makes random calls with random arguments, in a sandbox without
rights (but one directory to write to). A failing seed is shrunk by hypothesis. The same calls are a test of our Linux:
whatever it is asked, it may neither end the server nor hang.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Guests, Kvmserver, Service, exchange, free_port
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def start(guests: Guests, kvmserver: Kvmserver, directory: Path, *options: str) -> Service:
    port = free_port()
    words = [
        "--warmup",
        "3",
        "--max-request-time",
        "2",
        "--volume",
        f"{directory}:/work:rw",
        "--allow-listen",
        *options,
    ]
    return kvmserver.start(*words, "run", guests.c("random_calls"), str(port), "/work", port=port).wait_ready()


@pytest.fixture(scope="module")
def service(guests: Guests, installed: Kvmserver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = start(guests, installed, tmp_path_factory.mktemp("ruins"), "-e", "-t", "1", "--verify-reset")
    yield started
    installed.stop(started)


def difference(expected: str, found: str) -> list[str]:
    old, new = expected.splitlines(), found.splitlines()
    return [f"- {line}" for line in old if line not in new] + [f"+ {line}" for line in new if line not in old]


def test_without_a_reset_the_description_changes(guests: Guests, kvmserver: Kvmserver, scratch: Path) -> None:
    """The check can fail: one counter in memory is enough to be seen."""
    service = start(guests, kvmserver, scratch, "-t", "1")
    first, second = service.ask().body, service.ask().body
    changed = difference(first, second)
    assert changed
    assert all(line[2:].startswith(("memory", "vectors")) for line in changed), changed
    kvmserver.stop(service)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(1, 2**40), count=st.integers(1, 400))
def test_any_calls_then_a_reset_equal_a_fresh_fork(seed: int, count: int, service: Service) -> None:
    expected = service.ask().body
    assert expected.startswith("vectors ")
    assert service.ask().body == expected, "two requests that do nothing see the same"
    # The calls may end the run in any way, even before its answer is out.
    exchange(
        service.port, f"GET /ruin?seed={seed}&count={count} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    found = service.ask().body
    assert not difference(expected, found), difference(expected, found)
