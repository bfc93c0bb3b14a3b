"""A counter on wsgiref: python3 counter_wsgi.py PORT."""

import sys
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

count = 0


def application(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    global count
    count += 1
    body = f"{count}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(WSGIServer):
    request_queue_size = 128

    def server_bind(self) -> None:
        # Without WSGIServer's look-up of the host's own name in the DNS.
        self.socket.setsockopt(1, 2, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()


if __name__ == "__main__":
    server = Server(("", int(sys.argv[1])), Handler)
    server.set_app(application)
    server.serve_forever()
