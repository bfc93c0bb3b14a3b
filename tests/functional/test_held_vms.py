"""Who holds a VM holds it no longer than there is reason to: one VM, so that whoever holds it is noticed."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from harness import SHAPES_SERVER, Guests, Kvmserver, Service, wait_until
from wire import GET, CutError, Wire, connect, get, post, within

OK = b"HTTP/1.1 200 OK\r\n"
BUFFER = 1 << 20
BODY_TIMEOUT_S = 1.0
WRITE_TIMEOUT_S = 2.0
REQUEST_TIME_S = 8.0


@pytest.fixture(scope="module")
def service(installed: Kvmserver) -> Iterator[Service]:
    """A program that answers what it is told to; clients have less time than it."""
    times = ["--body-timeout", f"{BODY_TIMEOUT_S:g}s", "--max-request-time", f"{REQUEST_TIME_S:g}s"]
    with installed.serving(SHAPES_SERVER, *times, warmup=1) as started:
        yield started


@pytest.fixture(scope="module")
def short(installed: Kvmserver) -> Iterator[Service]:
    """The same, where the program has less time than its clients."""
    with installed.serving(SHAPES_SERVER, "--max-request-time", "2s", warmup=1) as started:
        yield started


@pytest.fixture(scope="module")
def computing(guests: Guests, installed: Kvmserver) -> Iterator[Service]:
    """A program that computes while it answers, and little room for what it answers."""
    options = ["--response-buffer", "64KiB", "--write-timeout", f"{WRITE_TIMEOUT_S:g}s", "--max-request-time", "20s"]
    with installed.serving([guests.c("failures")], *options, warmup=3) as started:
        yield started


def upload(size: int, query: str = "") -> bytes:
    """The head of a request with a body of so many bytes."""
    return get(f"/upload{query}", f"Content-Length: {size}", method="POST")


def failures(service: Service, name: str) -> float:
    """How many runs have failed for this reason."""
    return service.statistics().get(f"failures.{name}", 0)


def wait_busy(service: Service, vms: int) -> None:
    """Until so many VMs have a request: what computes for ever has its VM until its time is over."""
    wait_until(lambda: service.statistics()["busy_vms"] == vms, 2 * REQUEST_TIME_S, f"{vms} VMs have a request")


@pytest.mark.parametrize("query", ["", "?busy=1"])
def test_an_upload_that_stops_gives_its_vm_back(query: str, service: Service) -> None:
    late, lines = failures(service, "late_body"), service.log.count("the program took too long")
    with connect(service.port) as wire:
        wire.send(upload(BUFFER + 1, query) + b"a" * BUFFER)
        start = time.monotonic()
        response = wire.response()
        took_s = time.monotonic() - start
        assert (response.status, response.names["connection"]) == (408, "close")
        assert BODY_TIMEOUT_S * 0.9 < took_s < REQUEST_TIME_S / 2
    assert service.ask().body == "2\n"
    assert failures(service, "late_body") == late + 1
    assert service.log.count("the program took too long") == lines, "it was not the program's fault"


def test_an_upload_that_gets_on_may_take_longer(service: Service) -> None:
    """The limit is to the time without a byte."""
    pieces = 6
    with connect(service.port) as wire:
        wire.send(upload(BUFFER + pieces) + b"a" * BUFFER)
        start = time.monotonic()
        for _ in range(pieces):
            time.sleep(BODY_TIMEOUT_S * 0.4)
            wire.send(b"a")
        assert wire.response().body.startswith(b"%d " % (BUFFER + pieces))
        assert time.monotonic() - start > 2 * BODY_TIMEOUT_S


def test_an_upload_gets_on_while_the_program_computes(service: Service) -> None:
    with connect(service.port) as wire:
        wire.send(upload(BUFFER + 1, "?busy=1") + b"a" * BUFFER)
        wait_busy(service, 1)
        wire.send(b"a")
        assert wire.response().body.startswith(b"%d " % (BUFFER + 1))


def test_an_upload_that_stops_behind_the_start_of_its_response_cuts_it(service: Service) -> None:
    late = failures(service, "late_body")
    with connect(service.port) as wire:
        wire.send(get("/early", f"Content-Length: {BUFFER + 1}", method="POST") + b"a" * BUFFER)
        assert wire.until(b"\r\n\r\n").startswith(OK)
        with pytest.raises((CutError, ConnectionResetError)):
            wire.until(b"what never comes")
    assert service.ask().body == "2\n"
    assert failures(service, "late_body") == late + 1


def test_who_waits_for_its_client_at_the_end_of_its_time_is_not_to_blame(short: Service) -> None:
    with connect(short.port) as wire:
        wire.send(upload(BUFFER + 1) + b"a" * BUFFER)
        assert wire.response().status == 408
    assert failures(short, "late_body") == 1
    assert "the program took too long" not in short.log


def slow_client(service: Service, path: str, window: int = 0) -> socket.socket:
    """One who has asked, and reads nothing yet; its socket takes ``window`` bytes, or what Linux lets it."""
    wait_busy(service, 0)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.socket())
        if window:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.settimeout(20)
        client.connect(("127.0.0.1", service.port))
        client.sendall(get(path, "Connection: close"))
        wait_busy(service, 1)
        stack.pop_all()
        return client


def test_a_response_is_sent_while_the_program_computes(computing: Service) -> None:
    """The room for it is full, the program's other thread is never at rest, and then the client reads."""
    size = 30_000_000
    with slow_client(computing, f"/busy/{size}") as client:
        time.sleep(WRITE_TIMEOUT_S / 2)
        assert len(Wire(client).response().body) == size
    assert computing.ask().body == "4\n"


def test_the_rest_of_a_piece_is_sent_while_the_program_computes(service: Service) -> None:
    """More than a socket takes at once, in one piece, and then nothing: no event but the client's reading moves it."""
    size = 12_000_000
    with slow_client(service, f"/compute?size={size}", 4096) as client, within(REQUEST_TIME_S):
        wire = Wire(client)
        wire.until(b"\r\n\r\n")
        received = 0
        while received < size:
            received += len(wire.exactly(int(wire.until(b"\r\n"), 16) + 2)) - 2
        assert received == size


def test_a_client_that_takes_nothing_from_a_computing_program_loses_its_response(computing: Service) -> None:
    with slow_client(computing, "/busy/30000000") as client:
        start = time.monotonic()
        assert computing.ask().body == "4\n"
        assert time.monotonic() - start < 10, "before --max-request-time"
        with pytest.raises(ConnectionResetError):
            Wire(client).rest()
    assert failures(computing, "client_gone") == 1


def silent(service: Service) -> socket.socket:
    """A client whose request the program holds without a word: its connection, once the VM has it."""
    wait_busy(service, 0)
    client = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    client.sendall(post("/raw?then=hold", b""))
    wait_busy(service, 1)
    return client


def test_a_reset_connection_frees_a_silent_vm_at_once(service: Service) -> None:
    client = silent(service)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with within(REQUEST_TIME_S / 2):
        assert service.ask().body == "2\n"


def test_a_closed_connection_frees_a_silent_vm_when_its_time_is_over(short: Service) -> None:
    """TCP tells no difference between one who has closed and one who only sends no more, until something is written."""
    before = failures(short, "timed_out")
    with silent(short):
        pass
    with within(10):
        assert short.ask().body == "2\n"
    assert failures(short, "timed_out") == before + 1


def test_who_sends_no_more_is_answered(service: Service) -> None:
    """A client that ends its own side behind its request, as ``nc -N`` does, while the program is silent."""
    written = OK + b"Content-Length: 4\r\n\r\nnews"
    with connect(service.port) as wire:
        wire.send(post(f"/raw?pieces={len(written) // 2}&pause=400", written))
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.response().body == b"news"
    with connect(service.port) as wire:
        assert wire.ask(GET).body == b"2\n"
