"""A counter on http.server: python3 counter_http_server.py PORT [threading]."""

import sys
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn

count = 0


class Counter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        global count
        count += 1
        body = f"{count}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(TCPServer):
    allow_reuse_address = True
    request_queue_size = 128


class ThreadingServer(ThreadingMixIn, Server):
    daemon_threads = True


if __name__ == "__main__":
    kind = ThreadingServer if sys.argv[2:] == ["threading"] else Server
    kind(("", int(sys.argv[1])), Counter).serve_forever()
