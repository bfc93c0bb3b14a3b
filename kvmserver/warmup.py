"""Warm-up: the requests that make a program hot before its snapshot, and the judgement of its answers.

The requests travel in memory, so nothing here touches the network.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httptools

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A target is visible ASCII: anything else would let a file smuggle a second header or request.
_TARGET = re.compile(r"/[\x21-\x7e]*|\*")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_FRAMING_HEADERS = ("content-length", "transfer-encoding")


@dataclass(frozen=True)
class WarmupRequest:
    """One request; ``status`` is the only status that counts as success, ``None`` accepts any 2xx and 3xx."""

    method: str = "GET"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    status: int | None = None

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.method} {self.path}"


DEFAULT_REQUESTS = (WarmupRequest(),)


def parse_request(text: str) -> WarmupRequest:
    """``METHOD /path`` of the command line. Raises ValueError."""
    parts = text.split()
    if len(parts) != 2:
        raise ValueError(f"{text!r} is not 'METHOD /path'")
    return check_request(WarmupRequest(method=parts[0], path=parts[1]))


def check_request(request: WarmupRequest) -> WarmupRequest:
    """The request itself, or ValueError if it could not be sent as one well-formed request."""
    if not _TOKEN.fullmatch(request.method):
        raise ValueError(f"{request.method!r} is not a request method")
    if not _TARGET.fullmatch(request.path):
        raise ValueError(f"{request.path!r} is not a path: it begins with '/' and has no spaces")
    for name, value in request.headers.items():
        if not _TOKEN.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"{name!r} is not a well-formed header")
        if name.lower() in _FRAMING_HEADERS:
            raise ValueError(f"the header {name!r} is set from the body")
    if request.status is not None and not 200 <= request.status <= 599:
        raise ValueError(f"{request.status} is not a final status (200 to 599)")
    return request


def build(request: WarmupRequest) -> bytes:
    """The bytes of the request, HTTP/1.1, asking for the connection to be closed."""
    headers = {"Host": "localhost", "Connection": "close"}
    given = {name.lower() for name in request.headers}
    headers = {name: value for name, value in headers.items() if name.lower() not in given} | dict(request.headers)
    body = request.body.encode()
    if body or request.method in ("POST", "PUT", "PATCH"):
        headers["Content-Length"] = str(len(body))
    lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def judge(request: WarmupRequest, answer: bytes) -> str:
    """Why the answer does not count as success, as the end of a sentence; empty if it does."""
    if not answer:
        return "was not answered"
    response = _Response()
    parser = httptools.HttpResponseParser(response)
    response.status_of = parser.get_status_code
    try:
        parser.feed_data(answer)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        if not response.is_whole(request):
            return f"was answered with malformed HTTP ({error})"
    if response.status is None:
        return "was answered with an incomplete head"
    wanted = response.status == request.status if request.status else 200 <= response.status <= 399
    if not wanted:
        expected = f", not {request.status}" if request.status else ""
        return f"was answered with status {response.status}{expected}"
    if not response.is_whole(request):
        return "was answered with an incomplete body"
    return ""


def run_warmup(
    count: int, requests: Sequence[WarmupRequest], send: Callable[[int, WarmupRequest, bytes], None]
) -> None:
    """Call ``send(index, request, bytes)`` ``count`` times, taking the requests in turn."""
    encoded = [(request, build(request)) for request in requests]
    for index in range(count):
        send(index, *encoded[index % len(encoded)])


class _Response:
    """Callbacks of httptools for one answer; interim (1xx) responses before the final one are skipped."""

    def __init__(self) -> None:
        self.status_of: Callable[[], int] = lambda: 0
        self.status: int | None = None
        self.complete = False
        self.framed = False

    def on_message_begin(self) -> None:
        # Bytes after a complete final response are not part of it; they change nothing.
        if not self.complete:
            self.framed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete and name.lower() in (b"content-length", b"transfer-encoding"):
            self.framed = True

    def on_headers_complete(self) -> None:
        status = self.status_of()
        if not self.complete and (status >= 200 or status == 101):
            self.status = status

    def on_message_complete(self) -> None:
        self.complete = self.status is not None

    def is_whole(self, request: WarmupRequest) -> bool:
        """Whether all of the body came; without a length it ends where the stream ends."""
        return self.status is not None and (self.complete or not self.framed or request.method == "HEAD")
