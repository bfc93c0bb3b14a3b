"""The pretended data plane: the classes of _vmm.pyi, with the program's base name as its script.

``server`` listens, ``counter`` too and answers its count, ``status7`` exits, ``segfault`` dies, ``hang`` never
listens, ``sick`` answers 500, ``mute`` never answers, ``busy`` cannot bind, ``panic`` panics, ``suicide`` has workers
that die after a moment, ``stillborn`` has workers that cannot start, ``deaf`` has workers that ignore a drain.

As storage programs: ``keeper`` waits for calls, ``mortal`` and ``quitter`` die in the warm-up (the first is told of
with the next request, the other only by suspend()); ``status3``, ``segfault``, ``hang``, ``panic``, ``notelf`` and
``fdless`` never wait; ``clingy`` cannot be suspended.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from typing import Any

__all__ = ["Sandbox", "Snapshot", "Storage", "VmmError", "__version__", "kvm_fallbacks", "probe", "syscall_table"]

__version__ = "0.0.0"

LISTENERS = [{"family": "inet", "address": "0.0.0.0", "port": 8000}]
REFUSED = {"address": "0.0.0.0", "port": 8000, "error": "address already in use"}


class VmmError(Exception):
    pass


class Panic(BaseException):
    pass


def probe() -> str:
    return json.dumps({"api_version": 12, "kind": "pretended"})


def kvm_fallbacks() -> list[str]:
    return []


def syscall_table() -> str:
    return json.dumps(
        [
            {"number": 0, "name": "read", "support": "full", "note": ""},
            {"number": 1, "name": "write", "support": "partial", "note": "some | note"},
        ]
    )


class Storage:
    """What may be done to it when is checked here: boot, suspend, discard, in this order."""

    last: "Storage | None" = None

    def __init__(self, config: str) -> None:
        self.config = json.loads(config)
        self.script = os.path.basename(self.config["sandbox"]["program"])
        self.state = "loaded"
        if self.script == "fdless":
            raise VmmError("system", "cannot share memory: too many open files", "")
        Storage.last = self

    def boot(self, timeout_ns: int) -> str:
        assert self.state == "loaded"
        assert timeout_ns == self.config["boot_time_ns"]
        if self.script == "notelf":
            raise VmmError("program_not_executable", "cannot execute /x/notelf: no ELF file", "build it for x86-64")
        ends: dict[str, dict[str, Any]] = {
            "status3": {"end": "exited", "status": 3, "notes": ["the program may not connect to 10.0.0.1:6379"]},
            "segfault": {"end": "killed", "signal": 11, "detail": "rip 0x1000"},
            "hang": {"end": "timed_out", "detail": ""},
        }
        if self.script == "panic":
            raise Panic("index out of bounds")
        if self.script == "echo":
            os.write(1, json.dumps(self.config).encode() + b"\n")
        self.state = "running"
        return json.dumps(ends.get(self.script, {"end": "waiting", "init_ns": 416_000_000}))

    def suspend(self) -> None:
        assert self.state == "running"
        if self.script == "quitter":
            raise VmmError("storage", "the storage program failed: the program exited with status 5", "")
        if self.script == "clingy":
            raise VmmError("storage", "cannot suspend the storage program: no memory", "")
        self.state = "suspended"

    def discard(self) -> None:
        assert self.state in ("suspended", "discarded")
        self.state = "discarded"


class Sandbox:
    def __init__(self, config: str, storage: Storage | None = None) -> None:
        self.config = json.loads(config)
        assert (self.config["gate"] is None) == (storage is None)
        assert storage is None or storage.state == "running"
        self.storage = storage
        self.script = os.path.basename(self.config["program"])
        self.count = 0
        if self.script == "notelf":
            raise VmmError("program_not_executable", "cannot run 'notelf': not an x86-64 ELF file", "")

    def boot(self, timeout_ns: int) -> str:
        os.write(1, b"")
        ends = {
            "status7": {"end": "exited", "status": 7},
            "segfault": {"end": "killed", "signal": 11, "detail": "rip 0x1000"},
            "hang": {"end": "timed_out", "detail": ""},
            "busy": {"end": "exited", "status": 1, "refused_listen": REFUSED},
        }
        if self.script == "panic":
            raise Panic("index out of bounds")
        if self.script == "sleep":
            time.sleep(60)
        if self.script in ("echo", "echo2"):
            os.write(1, json.dumps(self.config).encode() + b"\n")
            return json.dumps({"end": "exited", "status": 0})
        if self.script == "cat":
            while data := os.read(0, 4096):
                os.write(1, data)
            os.write(2, b"to stderr\n")
            return json.dumps({"end": "exited", "status": 0})
        if self.script == "kill9":
            os.kill(os.getpid(), signal.SIGKILL)
        ready = {"end": "ready", "wait": "epoll", "listeners": LISTENERS, "init_ns": 161_000_000}
        return json.dumps(ends.get(self.script, ready))

    def request(self, data: bytes, timeout_ns: int) -> tuple[bytes, str]:
        self.count += 1
        if self.script == "mute":
            return b"", json.dumps({"end": "timed_out"})
        status = "500 Oops" if self.script == "sick" and self.count == 3 else "200 OK"
        end: dict[str, Any] = {"end": "responded"}
        if self.storage is not None and self.storage.script == "mortal" and self.count == 2:
            end["notes"] = ["the program may not listen on :80", "the storage program exited with status 4"]
        return f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok".encode(), json.dumps(end)

    def snapshot(self) -> "Snapshot":
        return Snapshot(self.script, self.config)


class Snapshot:
    def __init__(self, script: str, config: dict[str, Any]) -> None:
        self.script = script
        self.config = config

    def bytes(self) -> int:
        return 4096

    def open_listeners(self) -> None:
        if self.script == "taken":
            raise VmmError("listen", "cannot listen on 0.0.0.0:8000: address already in use", "stop the other server")

    def run_natively(self) -> None:
        """The demo wants to be answered: start its program as it is, without any isolation."""
        words = [self.config["program"], *self.config["arguments"]]
        process = subprocess.Popen(words)
        atexit.register(process.kill)
        port = int(words[-1])
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            time.sleep(0.02)

    def serve(self, config: str, storage: Storage | None = None) -> str:
        options = json.loads(config)
        worker = options["worker"]
        control = socket.socket(fileno=options["control_fd"])
        if self.script == "stillborn":
            raise VmmError("kvm", "cannot create a VM: no space left on device", "")

        def tell(event: str, **more: object) -> None:
            control.sendall(json.dumps({"event": event, "worker": worker, **more}).encode() + b"\n")

        if self.script.startswith("python") and worker == 0:
            self.run_natively()
        if options["storage"] is not None:
            assert options["prime"] == []
            assert Storage.last is not None
            word = "goes on" if storage else "is started anew"
            state = Storage.last.state
            tell("log", level="info", message=f"worker {worker}: the storage program {word} ({state})")
        else:
            assert storage is None
        tell("ready")
        if self.script == "suicide":
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.script == "nonsense":
            control.sendall(b"this is not json\n")
        stats: dict[str, Any] = {"requests": 5, "reset_ns_max": 10 + worker, "threads": options["threads"]}
        if options["storage"] is not None:
            stats["storage"] = {"calls": 2, "failed_calls": 1}
        tell("run_failed", level="warning", message="killed by signal 11\x1b[31m")
        while True:
            select.select([control], [], [])
            data = control.recv(4096)
            if not data:
                os._exit(3)
            for line in data.splitlines():
                command = json.loads(line)["do"]
                if command == "stats":
                    tell("stats", stats=stats)
                if command == "drain" and self.script != "deaf":
                    atexit._run_exitfuncs()
                    tell("drained", stats=stats)
                    return json.dumps(stats)
