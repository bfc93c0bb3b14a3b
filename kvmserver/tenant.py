"""``python -m kvmserver.tenant CONTROL_FD SUPERVISOR_PID``: one tenant's process.

Loads the program, boots it, warms it up, takes the snapshot and forks the workers. Single-threaded, so that the fork
is sound; keeps its imports few, because its memory is what every request VM stands on. It is told everything by the
start message (plan.py) and reports everything as events over the control socket.
"""

import json
import os
import sys
import time
from typing import Any

from kvmserver import _vmm, channel, errors, fallbacks, lifeline, listen, open_files, run_end, warmup
from kvmserver.channel import Channel, Message
from kvmserver.errors import KvmserverError, StartError
from kvmserver.run_end import Ended, RunEnd
from kvmserver.storage_program import StorageProgram
from kvmserver.warmup import WarmupRequest
from kvmserver.workers import WorkerPool, shares

_PROGRESS_INTERVAL_S = 0.05
# Two requests show which pages are written by more than one, a third that nothing is missing.
_PRIME_REQUESTS = 3
# With many warm-up requests, a fork must not wait for all of them.
_PRIME_REQUESTS_MAX = 8

_DURING_WARM_UP = "during the warm-up"


class Tenant:
    """The life of one tenant, from the start message to the end of its workers."""

    def __init__(self, control: Channel, start: Message) -> None:
        self._control = control
        self._start = start
        self._program = str(start["program"])
        plan = start.get("storage")
        self._storage = None if plan is None else StorageProgram(plan)

    def run(self) -> int:
        """The exit code of the process. Raises KvmserverError if the start fails."""
        if self._storage is not None:
            self._storage.boot(self._control)
        sandbox = self._load()
        ended = self._boot(sandbox)
        if ended is not None:
            self._control.send({"event": "ended", "exit_code": ended.exit_code, "message": ended.message})
            return 0
        # Only a server is slower for it; the standard error of a program that has ended is its own.
        for warning in fallbacks.warnings(_vmm.kvm_fallbacks()):
            self._control.send({"event": "log", "level": "warning", "message": warning})
        warmup_ns = self._warm_up(sandbox)
        snapshot = sandbox.snapshot()
        snapshot_ns = time.monotonic_ns()
        del sandbox
        if self._storage is not None:
            self._storage.suspend(_DURING_WARM_UP)
        if fds := self._start.get("listen_fds"):
            for fd in fds:
                listen.begin(fd)
        else:
            snapshot.open_listeners()
        self._serve(snapshot, warmup_ns, snapshot_ns)
        return 0

    def _load(self) -> _vmm.Sandbox:
        sandbox_config = json.dumps(self._start["sandbox"])
        return self._storage.load_caller(sandbox_config) if self._storage else _vmm.Sandbox(sandbox_config)

    def _boot(self, sandbox: _vmm.Sandbox) -> Ended | None:
        limit_ns, server_expected = int(self._start["boot_time_ns"]), bool(self._start["server_expected"])
        end = json.loads(sandbox.boot(limit_ns))
        if self._storage is not None and (server_expected or end.get("end") == "ready"):
            when = f"while program {self._program!r} started"
            self._require_storage(self._storage, end, when, failed=end.get("end") != "ready")
        ended = run_end.after_boot(end, self._program, server_expected, limit_ns)
        if ended is None:
            if refused := run_end.refused_listen(end, self._program):
                self._control.send({"event": "log", "level": "warning", "message": refused})
            addresses = [run_end.listener_address(listener) for listener in end["listeners"]]
            wait, init_ns = end["wait"], end["init_ns"]
            self._control.send({"event": "ready", "wait": wait, "listeners": addresses, "init_ns": init_ns})
        return ended

    def _warm_up(self, sandbox: _vmm.Sandbox) -> int:
        """Send the warm-up requests; the nanoseconds that took. Raises StartError at the first bad answer."""
        count = int(self._start["warmup"]["count"])
        requests = [WarmupRequest(**request) for request in self._start["warmup"]["requests"]]
        limit_ns = int(self._start["request_time_ns"])
        begin_ns, reported_s = time.monotonic_ns(), 0.0

        def send(index: int, request: WarmupRequest, data: bytes) -> None:
            nonlocal reported_s
            answer, text = sandbox.request(data, limit_ns)
            end = json.loads(text)
            problem = _judge(request, answer, end, limit_ns)
            if self._storage is not None:
                self._require_storage(self._storage, end, _DURING_WARM_UP, failed=bool(problem))
            if problem:
                hint = "run with --verbose to see more, or change the requests with --warmup-request"
                raise StartError(f"warm-up request {index + 1} of {count} ({request.label}) {problem}", hint)
            if time.monotonic() - reported_s >= _PROGRESS_INTERVAL_S or index + 1 == count:
                reported_s = time.monotonic()
                self._control.send({"event": "warmup", "done": index + 1, "count": count})

        warmup.run_warmup(count, requests, send)
        return time.monotonic_ns() - begin_ns

    @staticmethod
    def _require_storage(storage: StorageProgram, end: RunEnd, when: str, failed: bool) -> None:
        """A dead storage program ends the start, and is the reason where a run of the other program ``failed``."""
        if death := storage.death(end, when):
            raise death
        if failed:
            storage.suspend(when)

    def _serve(self, snapshot: _vmm.Snapshot, warmup_ns: int, snapshot_ns: int) -> None:
        threads = self._shares()

        def serve(number: int, share: int, control_fd: int, is_first_life: bool) -> None:
            config = {**self._start["serve"], "threads": share, "control_fd": control_fd, "worker": number}
            config |= {"first_vm": sum(threads[:number]), "listen_fds": self._start.get("listen_fds") or []}
            config |= {"prime": self._prime(), "storage": self._start.get("storage")}
            storage = self._storage.for_fork(is_first_life) if self._storage else None
            try:
                snapshot.serve(json.dumps(config), storage) if storage else snapshot.serve(json.dumps(config))
            except _vmm.VmmError as error:
                raise errors.from_vmm(error) from error

        pool = WorkerPool(serve, threads, self._report, self._control)
        try:
            pool.start(after_forks=self._storage.discard if self._storage else None)
        except StartError:
            pool.kill()
            raise
        serving = {
            "event": "serving",
            "warmup_ns": warmup_ns,
            "fork_ns": time.monotonic_ns() - snapshot_ns,
            "workers": len(threads),
            "snapshot_bytes": snapshot.bytes(),
        }
        self._report(serving)
        pool.run()

    def _shares(self) -> list[int]:
        """The request VMs of each worker; those that share a storage program live in one process with its VM."""
        threads = int(self._start["threads"])
        if self._storage is not None and self._storage.is_shared:
            return [threads]
        return shares(threads, int(self._start["vms_per_process"]))

    def _prime(self) -> list[str]:
        """Requests that each request VM answers in memory before it serves, as text with one character a byte.

        They show it which pages every request writes, so that its first client waits no longer than the later ones.
        A storage program would take them for requests of clients, so that there are none beside one.
        """
        count = int(self._start["warmup"]["count"])
        if not self._start["serve"]["ephemeral"] or count == 0 or self._storage is not None:
            return []
        requests = [WarmupRequest(**request) for request in self._start["warmup"]["requests"]]
        encoded = [warmup.build(request).decode("latin-1") for request in requests]
        wanted = min(max(_PRIME_REQUESTS, len(encoded)), _PRIME_REQUESTS_MAX)
        return [encoded[index % len(encoded)] for index in range(wanted)]

    def _report(self, message: Message) -> None:
        self._control.send(message)


def _judge(request: WarmupRequest, answer: bytes, end: dict[str, Any], limit_ns: int) -> str:
    if end.get("end") == "responded":
        return warmup.judge(request, answer)
    return f"failed: the program {run_end.describe(end, limit_ns)}"


def main(arguments: list[str]) -> int:
    """Run the tenant that the arguments describe; its failures travel as one event, never as a traceback."""
    control_fd, supervisor_pid = (int(word) for word in arguments)
    lifeline.die_with_parent(supervisor_pid)
    lifeline.leave_signals_to_supervisor()
    open_files.raise_limit()
    control = channel.from_fd(control_fd)
    start = next(control.messages(), None)
    if start is None:
        return errors.EXIT_FAILURE
    try:
        return Tenant(control, start).run()
    except _vmm.VmmError as error:
        failure = errors.from_vmm(error)
    except KvmserverError as error:
        failure = error
    except BaseException as error:
        # A panic of the data plane is no Exception, and must become a sentence too.
        failure = KvmserverError(f"internal error: {type(error).__name__}: {error}")
    report = {"event": "failed", "exit_code": failure.exit_code, "message": failure.message, "hint": failure.hint}
    control.send(report)
    return errors.EXIT_FAILURE


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Nothing of ours is buffered; skipping the interpreter's teardown keeps the exit of a short program fast.
    os._exit(code)
