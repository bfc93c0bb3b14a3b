"""A server whose requests call the storage program: storage_request.py PORT.

/WORDS           the answer to these words (+ is a space), or 503 and what went wrong
/late/MS/WORDS   the same after that long
/dead/WORDS      the same, and then a crash instead of a response
/reach/PORT      what connecting to that port of this machine gives
/open/PATH       what opening that file gives
"""

import os
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import kvmserverguest


def reach(port: int) -> str:
    socket.create_connection(("127.0.0.1", port)).close()
    return "connected"


def respond(kind: str, rest: str) -> str:
    if kind == "reach":
        return reach(int(rest))
    if kind == "open":
        with open(f"/{rest}", "rb"):
            return "opened"
    if kind == "late":
        milliseconds, _, rest = rest.partition("/")
        time.sleep(int(milliseconds) / 1000)
    answer = kvmserverguest.call((rest or kind).replace("+", " ")).decode()
    if kind == "dead":
        os.kill(os.getpid(), signal.SIGSEGV)
    return answer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        try:
            status, body = 200, respond(kind, rest)
        except OSError as error:
            status, body = 503, str(error)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_words: object) -> None:
        pass


HTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
