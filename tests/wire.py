"""A client that sees every byte: what the tests of kept connections stand on."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def post(target: str, body: bytes, *fields: str, version: str = "1.1") -> bytes:
    """A request with a body of known length."""
    lines = [f"POST {target} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def get(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: x", *fields, "", ""]).encode()


@dataclass
class Response:
    """One response as it came."""

    status: int
    head: str
    body: bytes
    names: dict[str, str] = field(default_factory=dict)
    trailers: str = ""


class CutError(Exception):
    """The connection ended in the middle of a response; it holds what came."""


class Wire:
    """One connection. Its reader knows nothing but the framing that RFC 9112 has."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.data = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def more(self) -> None:
        """Read what there is; CutError at the end."""
        piece = self.socket.recv(65536)
        if not piece:
            raise CutError(self.data)
        self.data += piece

    def until(self, mark: bytes) -> bytes:
        """Everything up to the mark and with it."""
        while mark not in self.data:
            self.more()
        found, _, self.data = self.data.partition(mark)
        return found + mark

    def exactly(self, count: int) -> bytes:
        while len(self.data) < count:
            self.more()
        found, self.data = self.data[:count], self.data[count:]
        return found

    def response(self, is_head: bool = False) -> Response:
        """The next response, interim ones as well."""
        head = self.until(b"\r\n\r\n").decode("latin-1")
        lines = head.split("\r\n")
        names = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        response = Response(int(lines[0].split(" ")[1]), head, b"", names)
        if is_head or response.status < 200 or response.status in (204, 304):
            return response
        if names.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n"), 16):
                response.body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            while (line := self.until(b"\r\n")) != b"\r\n":
                response.trailers += line.decode()
        elif "content-length" in names:
            response.body = self.exactly(int(names["content-length"]))
        else:
            response.body = self.rest()
        return response

    def ask(self, data: bytes, is_head: bool = False) -> Response:
        """Send a request and read its response."""
        self.send(data)
        return self.response(is_head)

    def rest(self) -> bytes:
        """Everything until the other side ends; ConnectionResetError where it breaks the connection instead."""
        while piece := self.socket.recv(65536):
            self.data += piece
        found, self.data = self.data, b""
        return found

    def is_closed(self, within_s: float = 5.0) -> bool:
        """Whether the other side ends the connection without another byte."""
        self.socket.settimeout(within_s)
        try:
            return not self.data and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


@contextmanager
def connect(port: int, timeout_s: float = 20.0) -> Iterator[Wire]:
    """A connection to a server on this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connected:
        yield Wire(connected)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What happens in it may not take longer."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds, f"took {took:.2f} s"
