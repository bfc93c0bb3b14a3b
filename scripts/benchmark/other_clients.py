"""Clients beside wrk that do what it does not: upload, go away too early, and ask for what fails."""

import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from types import TracebackType

UPLOAD_BYTES = 50_000
ANSWER_BYTES = 300_000
TIMEOUT_S = 20
# A pause behind each, so that wrk's requests are the most by far.
PAUSE_S = 0.002


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def _ask(port: int, request: bytes) -> bytes:
    """Everything that comes of one request."""
    with closing(_connect(port)) as client:
        client.sendall(request)
        answer = bytearray()
        while piece := client.recv(1 << 16):
            answer += piece
        return bytes(answer)


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


def _post(body: bytes) -> bytes:
    head = f"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def upload(port: int, dice: random.Random) -> bool:
    """A body, which has to come back."""
    body = dice.randbytes(dice.randrange(1, UPLOAD_BYTES))
    answer = _ask(port, _post(body))
    return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n" + body)


def go_away(port: int, dice: random.Random) -> bool:
    """In the middle of a request, or of an answer; in an orderly way, or not. There is nothing that could be wrong."""
    request = dice.choice((_get("/"), _get(f"/big/{ANSWER_BYTES}"), _get("/slow/20"), _post(b"x" * UPLOAD_BYTES)))
    with closing(_connect(port)) as client:
        client.sendall(request[: dice.choice((len(request), dice.randrange(1, len(request))))])
        if dice.random() < 0.5:
            # No more than a part of what may be there.
            client.settimeout(0.01)
            with suppress(TimeoutError):
                client.recv(1000)
        if dice.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return True


def fail(port: int, dice: random.Random) -> bool:
    """A program that ends, in several ways, or that never answers."""
    return _ask(port, _get(dice.choice(("/segv", "/exit", "/abort", "/no-answer")))).startswith(b"HTTP/1.1 502 ")


KINDS: tuple[Callable[[int, random.Random], bool], ...] = (upload, go_away, fail)


class OtherClients:
    """One client of each kind, for as long as the block lasts; none without a port."""

    def __init__(self, port: int | None) -> None:
        self.requests = 0
        self.errors = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        kinds = KINDS if port is not None else ()
        self._threads = [threading.Thread(target=self._work, args=(kind, port)) for kind in kinds]

    def __enter__(self) -> "OtherClients":
        """They begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """They end what they are at."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _work(self, kind: Callable[[int, random.Random], bool], port: int) -> None:
        dice = random.Random(kind.__name__)
        while not self._over.wait(PAUSE_S):
            try:
                is_right = kind(port, dice)
            except OSError:
                is_right = False
            with self._lock:
                self.requests += 1
                self.errors += not is_right
