"""A server with several listening sockets: listeners.py PORT... answers each request with the place of its listener."""

import selectors
import socket
import sys

selector = selectors.DefaultSelector()
for place, port in enumerate(sys.argv[1:], 1):
    selector.register(socket.create_server(("127.0.0.1", int(port))), selectors.EVENT_READ, place)
while True:
    for key, _ in selector.select():
        listener = key.fileobj
        assert isinstance(listener, socket.socket)
        client, _ = listener.accept()
        with client:
            data = b""
            while b"\r\n\r\n" not in data and (piece := client.recv(65536)):
                data += piece
            body = b"%d\n" % key.data
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
