"""The open-loop client of scripts/bench, against servers that answer in pieces, wrongly or not at all."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmark.load import ConstantRate
from benchmark.results import KEPT, NEW, OpenSample

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
WRONG = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def server(serve: Serve) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def answering(*pieces: bytes) -> Serve:
    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while client.recv(4096):
                for piece in pieces:
                    client.sendall(piece)

    return serve


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> ConstantRate:
    return ConstantRate(Path(tmp_path_factory.mktemp("load")))


def run(tool: ConstantRate, serve: Serve, kind: str = KEPT) -> OpenSample:
    """50 requests."""
    with server(serve) as port:
        return tool.run(port, kind, 250, 0.2, 4)


@pytest.mark.parametrize("kind", [KEPT, NEW])
@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, LARGE, EMPTY])
def test_every_answer_is_counted_once(tool: ConstantRate, answer: bytes, kind: str) -> None:
    found = run(tool, answering(answer), kind)
    assert (found.errors, found.unfinished) == (0, 0)
    assert found.rate == 250
    assert 0 < found.p50_us <= found.p90_us <= found.p99_us <= found.p999_us <= found.max_us


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED])
def test_answers_may_come_in_pieces(tool: ConstantRate, answer: bytes) -> None:
    pieces = [answer[at : at + 3] for at in range(0, len(answer), 3)]
    found = run(tool, answering(*pieces))
    assert (found.errors, found.unfinished) == (0, 0)


def test_what_is_no_success_is_an_error(tool: ConstantRate) -> None:
    found = run(tool, answering(WRONG))
    assert found.errors == 50
    assert found.requests_per_s == 0


def test_a_server_that_hangs_is_not_fast(tool: ConstantRate) -> None:
    """Coordinated omission: of 50 requests 4 are sent, and all 50 have waited for at least the two seconds of grace."""
    is_over = threading.Event()

    def hold(client: socket.socket) -> None:
        with client:
            is_over.wait(20)

    found = run(tool, hold)
    is_over.set()
    assert found.unfinished == 50
    assert found.p50_us >= 2_000_000
