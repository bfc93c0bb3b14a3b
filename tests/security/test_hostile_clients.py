"""Hostile clients: whatever they send or leave out, nobody else notices, and nothing is kept for them."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Guests, Kvmserver, Service, exchange, free_port, open_descriptors, processes_below, wait_until

GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
REQUEST_TIME_S = 2.0


@pytest.fixture(scope="module")
def service(guests: Guests, installed: Kvmserver) -> Iterator[Service]:
    """A server that can also answer slowly, hugely, or not at all."""
    options = ["--max-request-time", f"{REQUEST_TIME_S:g}"]
    with installed.serving([guests.c("failures")], *options, threads=2, warmup=10) as started:
        yield started


def resident_mib(service: Service) -> float:
    """Memory of the server's processes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes_below(service.process.pid))
    return pages * 4096 / (1 << 20)


def check(service: Service) -> None:
    assert {service.ask().body for _ in range(4)} == {"11\n"}


def test_ten_thousand_connections_leave_no_descriptor(service: Service) -> None:
    check(service)
    before = open_descriptors(service)
    for turn in range(10_000):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            if turn % 3 == 1:
                client.send(b"GET / HT")
            if turn % 30 == 2:
                client.send(GET)
    wait_until(lambda: open_descriptors(service) <= before + 2, 15, "descriptors are closed")
    check(service)


@pytest.mark.parametrize("path", ["/", "/slow/300", "/big/20000000", "/loop"])
def test_clients_that_vanish(path: str, service: Service) -> None:
    before = open_descriptors(service)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(0.01)
    wait_until(lambda: open_descriptors(service) <= before + 2, 40, "descriptors are closed")
    check(service)


def test_a_half_closed_client_is_answered(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(b"GET /slow/100 HTTP/1.1\r\nHost: x\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert received.endswith(b"11\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(request_bytes: bytes, service: Service) -> None:
    status = exchange(service.port, request_bytes).split(b" ")[1]
    assert status in (b"400", b"431", b"501")
    check(service)


def test_garbage_behind_a_request_is_no_request(service: Service) -> None:
    received = exchange(service.port, GET + b"\x00garbage" * 1000 + GET)
    assert received.count(b"HTTP/1.1 200") == 1
    check(service)


@pytest.mark.parametrize("size", [200_000, 1_000_000])
def test_a_response_arrives_although_the_client_sent_too_much(size: int, service: Service) -> None:
    """Unread bytes at the close would make TCP throw away what the client has not taken yet."""
    with socket.socket() as client:
        # A small window, so that the response lies with the server when it closes.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", service.port))
        client.sendall(b"GET /big/500000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + b"x" * size)
        time.sleep(0.5)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert len(received.partition(b"\r\n\r\n")[2]) == 500_000
    check(service)


@pytest.mark.parametrize("path", ["/loop", "/sleep"])
@pytest.mark.parametrize("body", [b"x" * 65536, b"10000\r\n" + b"x" * 65536 + b"\r\n"])
def test_an_upload_that_the_program_does_not_read_is_not_kept(path: str, body: bytes, service: Service) -> None:
    """The client sends as much as it can for as long as the run lasts."""
    before = resident_mib(service)
    framing = b"Transfer-Encoding: chunked" if body[0] == ord("1") else b"Content-Length: 100000000000"
    most = 0.0
    with socket.create_connection(("127.0.0.1", service.port), timeout=REQUEST_TIME_S + 5) as client:
        client.settimeout(0.05)
        client.send(f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() + framing + b"\r\n\r\n")
        end, rest = time.monotonic() + REQUEST_TIME_S + 1, b""
        while time.monotonic() < end:
            try:
                rest = rest or body
                rest = rest[client.send(rest) :]
            except TimeoutError:
                most = max(most, resident_mib(service))
            except OSError:
                break
    assert max(most, resident_mib(service)) < before + 100
    check(service)


def test_chunks_that_turn_bad_end_the_upload(service: Service) -> None:
    """The first MiB is fine and the rest is not; nobody may collect it."""
    before = resident_mib(service)
    with socket.create_connection(("127.0.0.1", service.port), timeout=REQUEST_TIME_S + 5) as client:
        client.sendall(b"POST /sleep HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        end = time.monotonic() + REQUEST_TIME_S + 1
        try:
            client.sendall((b"8000\r\n" + b"x" * 32768 + b"\r\n") * 32)
            while time.monotonic() < end:
                client.sendall(b"not a chunk" * 4096)
        except OSError:
            pass
    assert resident_mib(service) < before + 100
    check(service)


def test_a_hundred_megabytes_arrive(guests: Guests, kvmserver: Kvmserver) -> None:
    port = free_port()
    service = kvmserver.serve([guests.c("failures"), str(port)], port, "--max-request-time", "30", warmup=3)
    received = exchange(port, b"GET /big/100000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert len(received.partition(b"\r\n\r\n")[2]) == 100_000_000
    assert service.ask().body == "4\n"
    kvmserver.stop(service)


@pytest.mark.parametrize("size", range(16 << 20, 24 << 20, 768 << 10))
def test_a_response_is_whole_although_its_client_waits_before_it_reads(service: Service, size: int) -> None:
    """The program has closed its stream long before: what our buffer had no room for must not be lost with it."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.settimeout(10)
        client.connect(("127.0.0.1", service.port))
        client.sendall(b"GET /big/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % size)
        time.sleep(0.3)
        received = bytearray()
        while piece := client.recv(1 << 20):
            received += piece
    assert len(received.partition(b"\r\n\r\n")[2]) == size
