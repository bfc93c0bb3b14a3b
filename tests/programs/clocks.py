"""Tells the time as JSON, each clock by the vDSO and by the system call, and something random: clocks.py PORT."""

import ctypes
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SYS_CLOCK_GETTIME = 228
libc = ctypes.CDLL(None)


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def by_system_call(clock: int) -> float:
    moment = Timespec()
    libc.syscall(SYS_CLOCK_GETTIME, clock, ctypes.byref(moment))
    return float(moment.seconds + moment.nanoseconds / 1e9)


class Clocks(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = {
            "monotonic": time.monotonic(),
            "monotonic_call": by_system_call(time.CLOCK_MONOTONIC),
            "realtime": time.time(),
            "realtime_call": by_system_call(time.CLOCK_REALTIME),
            "random": os.urandom(8).hex(),
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    HTTPServer(("", int(sys.argv[1])), Clocks).serve_forever()
