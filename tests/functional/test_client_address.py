"""Who the client is, where no address of a TCP connection says so: a proxy's word, and a path in the file system."""

import socket
import struct
from pathlib import Path

from harness import PYTHON, Kvmserver, find_tool, free_port
from wire import Wire, connect, get

# Answers the peer's address, and then whatever it is sent.
ECHO = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, peer = listener.accept()
    with client:
        client.sendall(b"%s %d\\n" % (peer[0].encode(), peer[1]))
        while piece := client.recv(65536):
            client.sendall(piece)
"""

# Answers what it is told of the client.
FIELDS = """
require("node:http").createServer((request, response) => {
  response.end(`${request.headers["x-forwarded-for"]} ${request.headers.forwarded}\\n`);
}).listen(Number(process.argv[2]));
"""


def test_the_proxy_protocol_before_bytes_that_pass_through(kvmserver: Kvmserver, scratch: Path) -> None:
    """The preface is for the host; the program sees the address in it, and nothing but the bytes behind it."""
    program, port = scratch / "echo.py", free_port()
    program.write_text(ECHO)
    words = [PYTHON, str(program), str(port)]
    service = kvmserver.serve(words, port, "--protocol", "tcp", "--proxy-protocol", "--max-request-time", "20")
    addresses = socket.inet_aton("192.0.2.9") + socket.inet_aton("192.0.2.8") + struct.pack("!HH", 4712, 2)
    for preface, told in (
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 2\r\n", b"192.0.2.7 4711\n"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + addresses, b"192.0.2.9 4712\n"),
    ):
        for pieces in ([preface + b"one two"], [preface[:7], preface[7:], b"one", b" two"]):
            with connect(port) as wire:
                for piece in pieces:
                    wire.send(piece)
                assert wire.exactly(len(told)) == told
                assert wire.exactly(7) == b"one two"
                wire.socket.shutdown(socket.SHUT_WR)
                assert wire.rest() == b""
    with connect(port) as wire:
        wire.send(b"one two\r\n")
        assert wire.is_closed(), "without the preface nobody is served"
    kvmserver.stop(service)


def test_a_client_at_a_path_is_unknown_to_the_program(kvmserver: Kvmserver, scratch: Path) -> None:
    program, path = scratch / "fields.js", scratch / "socket"
    program.write_text(FIELDS)
    words = [find_tool("node"), str(program), str(free_port())]
    service = kvmserver.serve(words, 0, "--listen", f"unix:{path}", "--proxy-headers", warmup=5)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        wire = Wire(client)
        for _ in range(5):
            assert wire.ask(get("/")).body == b"unknown for=unknown;proto=http\n"
        seen = wire.ask(get("/", "X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1")).body
        assert seen == b"192.0.2.1, unknown for=192.0.2.1, for=unknown;proto=http\n"
    kvmserver.stop(service)
