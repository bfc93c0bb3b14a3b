"""A counter in Redis, by its own client library: every call adds one, and its answer is the number that Redis gave.

    storage_redis.py PORT [GATE]

A thread goes on counting ``ticks`` every 50 ms by itself, over another connection of the library's pool. Other words
than ``count`` count too, and then fail in their way, after Redis has acknowledged the number. While there is a file
GATE the program does not start.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import kvmserverguest

if len(sys.argv) > 2 and Path(sys.argv[2]).exists():
    sys.exit("the gate is closed")

import redis

server = redis.Redis("127.0.0.1", int(sys.argv[1]), decode_responses=True)


def tick() -> None:
    while True:
        server.incr("ticks")
        time.sleep(0.05)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


def hang() -> None:
    while True:
        pass


def eat() -> None:
    eaten = []
    try:
        while True:
            eaten.append(bytearray(b"x" * (16 << 20)))
    except MemoryError:
        # What is left is not enough to go on.
        os.abort()


FAILURES: dict[str, Callable[[], None]] = {"crash": crash, "exit": leave, "hang": hang, "eat": eat}


def answer(request: bytes) -> str:
    word, _, argument = request.decode().partition(" ")
    number = server.incr("numbers")
    if word == "sleep":
        time.sleep(int(argument) / 1000)
    if word == "connection":
        return str(server.client_id())
    if word in FAILURES:
        FAILURES[word]()
    return str(number)


threading.Thread(target=tick, daemon=True).start()
kvmserverguest.serve(answer)
