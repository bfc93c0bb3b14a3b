"""The data plane: one program in a KVM virtual machine, its snapshot, and the server made of its forks.

Every method that runs guest code releases the GIL. Plain data crosses as JSON text (see vmm/src/config.rs and
vmm/src/report.rs, which define the same shapes with serde) so that neither side has to keep two class
hierarchies in step.
"""

from typing import final

__version__: str

class VmmError(Exception):
    """Something failed on the host's side; ``args`` is ``(kind, message, hint)``.

    ``kind`` is one of ``"program_not_found"`` (exit code 127), ``"program_not_executable"`` (126), ``"kvm"``,
    ``"listen"``, ``"snapshot"``, ``"storage"``, ``"config"``, ``"system"``; ``message`` is one sentence in lower case
    without a final period; ``hint`` says what to do and may be empty.
    """

def probe() -> str:
    """What the KVM of this machine can do, as JSON: ``{"api_version": 12, "kind": "kvm_pvm", ..., "exit_ns": 28000}``.

    That is ``Capabilities`` of vmm/src/platform/kvm/probe.rs, and the measured cost of an exit, nanoseconds.

    Raises VmmError of kind ``"kvm"`` where ``/dev/kvm`` is missing or may not be opened.
    """

def kvm_fallbacks() -> list[str]:
    """Features that this kernel lacks and that something slower is done for (keys of fallbacks.SENTENCES).

    Raises VmmError of kind ``"kvm"`` where ``/dev/kvm`` is missing or may not be opened.
    """

def guest_files() -> list[tuple[str, bytes]]:
    """``libkvmserverguest.so``, its header, and its wrappers for other languages: relative path and content of each."""

def syscall_table() -> str:
    """Every x86-64 system call as JSON: a list of ``{"number", "name", "support", "note"}``.

    ``support`` is ``"full"``, ``"partial"``, ``"ignored"`` or ``"none"``; ``note`` says what is missing.
    """

@final
class Storage:
    """The storage program's VM, before and beside the request VMs."""

    def __new__(cls, config: str) -> Storage:
        """Load the storage program. Raises VmmError.

        ``config`` is the JSON of ``{"sandbox": a SandboxConfig, "max_call_time_ns": 8000000000, "boot_time_ns":
        20000000000, "one_to_one": false}``; other keys are ignored.
        """

    def boot(self, timeout_ns: int) -> str:
        """Run until the program waits for its first call or ends; JSON of a RunEnd.

        ``{"end": "waiting", "init_ns": 416000000}`` or one of the ends of Sandbox.boot apart from ``"ready"``. Every
        form may carry ``"notes": ["..."]``. After ``"waiting"`` it goes on running in a thread of its own in this
        process until suspend().
        """

    def suspend(self) -> None:
        """Stop the program and its thread, so that the process can be forked. Calls fail with EAGAIN meanwhile.

        Raises VmmError of kind ``"storage"`` if the program is dead.
        """

    def discard(self) -> None:
        """Let go of everything it holds in this process.

        Its connections stay open in a process that was forked before. Doing it again does nothing.
        """

@final
class Sandbox:
    """The master: one VM with its kernel and program, before the snapshot."""

    def __new__(cls, config: str, storage: Storage | None = None) -> Sandbox:
        """Load a program. ``config`` is the JSON of a SandboxConfig. Raises VmmError.

        Its ``"gate"`` is null, ``{"role": "caller"}`` for a program whose calls go to ``storage``, or ``{"role":
        "storage", "lanes": 4}`` for the storage program of that many request VMs.
        """

    def boot(self, timeout_ns: int) -> str:
        """Run until the program is ready or ends; JSON of a RunEnd.

        ``{"end": "ready", "wait": "epoll"|"poll"|"select"|"accept", "listeners": [{"family": "inet"|"inet6"|"unix",
        "address": "0.0.0.0", "port": 8000}], "init_ns": 161000000}`` or one of ``{"end": "exited", "status": 0}``,
        ``{"end": "killed", "signal": 11, "detail": "..."}``, ``{"end": "timed_out", "detail": "..."}``,
        ``{"end": "out_of_memory", "detail": "..."}``, ``{"end": "deadlocked", "detail": "..."}``,
        ``{"end": "broken", "detail": "..."}``. Every form may carry
        ``"refused_listen": {"address", "port", "error"}`` when a bind of the program failed on the host, and
        ``"notes": ["..."]``; one that begins with "the storage program " tells that the storage program has died.
        With ``timeout_ns`` 0 there is no limit (a program that is not a server).
        """

    def request(self, data: bytes, timeout_ns: int) -> tuple[bytes, str]:
        """Feed one connection with ``data`` in memory; the bytes the program answered, and the JSON of the RunEnd.

        The run ends with ``{"end": "responded"}`` when the program closed the stream or completed its answer and
        waits again; the other ends are those of boot.
        """

    def snapshot(self) -> Snapshot:
        """Freeze the program. The sandbox may not be used afterwards."""

@final
class Snapshot:
    """A frozen program: sealed memory, registers, threads, descriptors. Survives ``os.fork``."""

    def bytes(self) -> int:
        """Size of the frozen memory in bytes."""

    def open_listeners(self) -> None:
        """Start listening on the sockets the program asked for (before the workers are forked)."""

    def serve(self, config: str, storage: Storage | None = None) -> str:
        """Serve in this process until drained or told to stop; JSON of the final ServeStats.

        Calls go to ``storage``, which was suspended before the fork and goes on here; without it, and with
        ``"storage"`` in the configuration, the storage program is started anew.

        ``config`` is the JSON of a ServeConfig: ``{"threads": 2, "ephemeral": true, "verify_reset": false,
        "max_request_time_ns": ..., "max_request_memory": ..., "limit_request_memory": ..., "hot_pages": 1024,
        "drain_time_ns": 10000000000, "control_fd": 5, "worker": 0, "first_vm": 0, "prime": ["GET / HTTP/1.1..."],
        "clients": a ClientConfig, "listen_fds": [], "storage": null or what Storage is made of}``. ``listen_fds`` are
        sockets that listen in place of the program's own, in order; they stay open for the duration of the call.

        ``control_fd`` is a SOCK_STREAM socket that carries one JSON object a line, both ways. To the worker:
        ``{"do": "drain"}``, ``{"do": "stats"}``. From the worker: ``{"event": "ready", "worker": 0}``,
        ``{"event": "run_failed", "level": "warning", "message": "..."}``,
        ``{"event": "log", "level": ..., "message": ...}``, ``{"event": "stats", "worker": 0, "stats": {...}}``,
        ``{"event": "drained", "stats": {...}}``. End of file from the other side means that the
        supervisor is gone: the worker stops at once.
        """
