"""What stays live: bytes pass at once in both directions, and the VM is reset at the end."""

import hashlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from harness import SHAPES_SERVER, Kvmserver, Service, wait_until
from wire import GET, CutError, connect, get, post, within

OK = b"HTTP/1.1 200 OK\r\n"
SWITCH = ("Upgrade: capitals", "Connection: Upgrade")


@pytest.fixture(scope="module")
def service(installed: Kvmserver) -> Iterator[Service]:
    """A program that answers what it is told to; one VM, so that whoever holds it is noticed."""
    with installed.serving(SHAPES_SERVER, "--max-request-time", "3s", warmup=1) as started:
        yield started


@pytest.mark.parametrize("head", [b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_events_arrive_as_they_are_sent(head: bytes, service: Service) -> None:
    events = [b"data: %d\n\n" % number for number in range(5)]
    if b"chunked" in head:
        events = [b"9\r\n%s\r\n" % event for event in events]
    size = len(events[0])
    # The head is one piece, too: padded to the size of the events.
    written = OK + b"Content-Type: text/event-stream\r\n"
    written += b"X: " + b"a" * (-(len(written) + len(head) + 5) % size) + b"\r\n" + head
    end = b"0\r\n\r\n" if b"chunked" in head else b""
    assert len(written) % size == 0
    with connect(service.port) as wire:
        wire.send(post(f"/raw?pieces={size}&pause=0", written + b"".join(events) + end))
        assert wire.response().body == b"".join(b"data: %d\n\n" % number for number in range(5))
        wire.send(post(f"/raw?pieces={len(written)}&pause=100", written + b"".join(events)[: len(written)]))
        wire.until(b"\r\n\r\n")
        start = time.monotonic()
        wire.until(b"data: 0\n\n")
        assert time.monotonic() - start < 1
    assert service.ask().body == "2\n"


def test_each_event_comes_at_its_time(service: Service) -> None:
    head = OK + b"\r\n"
    written = head + b"".join(b"event: %012d" % number for number in range(5))
    assert len(head) == 19
    with connect(service.port) as wire:
        wire.send(post("/raw?pieces=19&pause=300", written))
        times = []
        for number in range(5):
            wire.until(b"event: %012d" % number)
            times.append(time.monotonic())
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(0.1 < gap < 1 for gap in gaps), gaps
        wire.until(b"0\r\n\r\n")
        assert wire.ask(GET).body == b"2\n"


def test_a_long_poll_is_answered_when_there_is_something(service: Service) -> None:
    """Half of the head, a pause, the rest."""
    written = OK + b"Content-Length: 4\r\n\r\nnews"
    with connect(service.port) as wire:
        start = time.monotonic()
        response = wire.ask(post(f"/raw?pieces={len(written) // 2}&pause=400", written))
        assert response.body == b"news"
        assert 0.3 < time.monotonic() - start < 1.5
        assert wire.ask(GET).body == b"2\n"


def test_another_protocol_passes_both_ways_at_once(service: Service) -> None:
    with connect(service.port) as wire:
        response = wire.ask(get("/switch", *SWITCH))
        assert (response.status, response.names["upgrade"], response.names["connection"]) == (
            101,
            "capitals",
            "Upgrade",
        )
        assert wire.exactly(6) == b"HELLO "
        for word in (b"a", b"word", b"w" * 200_000, b"\x00\r\n\r\n"):
            with within(1):
                threading.Thread(target=wire.send, args=(word,)).start()
                assert wire.exactly(len(word)) == word.upper()
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.is_closed()
    assert service.ask().body == "2\n"


def test_bytes_that_come_with_the_upgrade_belong_to_the_new_protocol(service: Service) -> None:
    with connect(service.port) as wire:
        wire.send(get("/switch", *SWITCH) + b"early")
        assert wire.response().status == 101
        assert wire.exactly(11) == b"HELLO EARLY"


def test_an_upgrade_that_is_not_wanted_is_an_ordinary_request(service: Service) -> None:
    with connect(service.port) as wire:
        assert (
            wire.ask(get("/", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: a")).body
            == b"2\n"
        )
        assert wire.ask(GET).body == b"2\n"


def test_what_holds_its_vm_holds_it_for_a_limited_time(service: Service) -> None:
    with connect(service.port) as wire:
        assert wire.ask(get("/switch", *SWITCH)).status == 101
        start = time.monotonic()
        with pytest.raises((CutError, ConnectionResetError)):
            wire.until(b"what never comes")
        assert 2 < time.monotonic() - start < 5
    assert service.ask().body == "2\n"


def test_a_client_that_goes_away_frees_its_vm(service: Service) -> None:
    head = OK + b"\r\n"
    with connect(service.port) as wire:
        wire.send(post("/raw?pieces=100&pause=50", head + b"e" * 6000))
        wire.until(b"\r\n\r\n")
    with within(1.5):
        assert service.ask().body == "2\n"


@pytest.mark.parametrize("size", [100, 1 << 20, (1 << 20) + 1, 5_000_000, 30_000_000])
@pytest.mark.parametrize("form", ["known", "chunked"])
def test_uploads_of_any_size_arrive(size: int, form: str, service: Service) -> None:
    body = bytes(number * 7 % 251 for number in range(1000)) * (size // 1000 + 1)
    body = body[:size]
    sent = body
    if form == "chunked":
        sent = b"".join(
            b"%x\r\n%s\r\n" % (len(body[at : at + 70_000]), body[at : at + 70_000]) for at in range(0, size, 70_000)
        )
        sent += b"0\r\n\r\n"
    with connect(service.port) as wire:
        field = "Transfer-Encoding: chunked" if form == "chunked" else f"Content-Length: {size}"
        threading.Thread(target=wire.send, args=(get("/upload", field, method="POST") + sent + GET,)).start()
        assert wire.response().body == f"{len(sent)} {hashlib.sha256(sent).hexdigest()}".encode()
        assert wire.response().body == b"2\n"


def test_an_upload_waits_outside_until_enough_of_it_is_here(service: Service) -> None:
    with connect(service.port) as slow:
        slow.send(get("/upload", "Content-Length: 500000", method="POST") + b"a" * 100_000)
        for _ in range(20):
            assert service.ask().body == "2\n"
        slow.send(b"a" * 400_000)
        assert slow.response().body.startswith(b"500000 ")


def test_a_response_may_come_before_the_end_of_its_request(service: Service) -> None:
    """Nobody reads the rest, so that the connection cannot go on."""
    with connect(service.port) as wire:
        wire.send(get("/", "Content-Length: 50000000", method="POST") + b"a" * 2_000_000)
        wire.socket.settimeout(10)
        try:
            response = wire.response()
            assert response.names["connection"] == "close"
        except (CutError, ConnectionResetError):
            pass
    wait_until(lambda: service.ask().body == "2\n", 5, "the VM serves on")
