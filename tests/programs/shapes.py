"""A server that answers with exactly the bytes it is told to: shapes.py PORT.

``POST /raw`` writes the request's body, as it is, to the connection and closes it. Words in the query change that:
``pieces=N`` writes N bytes at a time, ``pause=MS`` waits behind each, ``then=`` says what comes at the end: ``close``
(default), ``hold`` (keeps the connection open), ``shut`` (ends its own side only) or ``exit``. ``/seen`` answers the
bytes of the request as they came, ``/upload`` the length and digest of its body, ``/switch`` goes over to another
protocol, which answers capital letters, ``/early`` answers before it reads its body, ``/compute?size=N`` answers N
bytes at once and then computes until it is ended, and anything else a number that grows. ``busy=1`` in any query:
another thread computes meanwhile, for ever.
"""

import hashlib
import os
import socket
import sys
import threading
import time
from urllib.parse import parse_qsl, urlsplit

count = 0


def read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """The head, and what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := client.recv(65536)):
            return b"", b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def fields(head: bytes) -> dict[str, str]:
    """Names in lower case."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def read_body(client: socket.socket, head: bytes, data: bytes) -> bytes:
    """The body as it came: chunks stay chunks."""
    names, whole = fields(head), bytearray(data)
    if names.get("transfer-encoding") == "chunked":
        while not whole.endswith(b"0\r\n\r\n") and b"\r\n0\r\n" not in whole[-200:]:
            if not (piece := client.recv(65536)):
                break
            whole += piece
        return bytes(whole)
    while len(whole) < int(names.get("content-length", "0")) and (piece := client.recv(1 << 20)):
        whole += piece
    return bytes(whole)


def respond(client: socket.socket, body: bytes) -> None:
    """An ordinary answer."""
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def switch(client: socket.socket, data: bytes) -> None:
    """Another protocol."""
    client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: capitals\r\nConnection: Upgrade\r\n\r\nHELLO ")
    while data or (data := client.recv(65536)):
        client.sendall(data.upper())
        data = b""


def raw(client: socket.socket, body: bytes, words: dict[str, str]) -> None:
    """What the request says."""
    size, pause_s = int(words.get("pieces", "0")) or max(len(body), 1), int(words.get("pause", "0")) / 1000
    for start in range(0, len(body), size):
        client.sendall(body[start : start + size])
        time.sleep(pause_s)
    then = words.get("then", "close")
    if then == "exit":
        os._exit(0)
    if then == "shut":
        client.shutdown(socket.SHUT_WR)
    if then in ("hold", "shut"):
        while client.recv(65536):
            pass


def compute() -> None:
    """For ever."""
    while True:
        pass


def serve(client: socket.socket) -> None:
    """One request of one client."""
    global count
    count += 1
    head, data = read_head(client)
    if not head:
        return
    target = urlsplit(head.split(b" ")[1].decode())
    if "busy=1" in target.query:
        threading.Thread(target=compute, daemon=True).start()
    if target.path == "/switch":
        switch(client, data)
        return
    if target.path == "/early":
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    if target.path == "/compute":
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(int(target.query.partition("=")[2])))
        compute()
    body = read_body(client, head, data)
    if target.path == "/raw":
        raw(client, body, dict(parse_qsl(target.query)))
    elif target.path == "/seen":
        respond(client, head + body)
    elif target.path == "/upload":
        respond(client, f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode())
    else:
        respond(client, f"{count}\n".encode())


def main() -> None:
    """One client after another."""
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as listener:
        while True:
            client, _ = listener.accept()
            with client:
                try:
                    serve(client)
                except ConnectionError:
                    continue


main()
