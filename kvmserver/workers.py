"""The worker processes of a tenant: forked from it, watched through pidfds, started again with back-off.

The tenant has one thread, which is what makes ``os.fork`` without ``exec`` sound. A worker inherits the snapshot and
the listening sockets, serves in the data plane until it is told to stop, and never returns from here.
"""

import gc
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvmserver import channel, lifeline, small_pages
from kvmserver.backoff import Backoff
from kvmserver.channel import Channel, ChannelError, Message
from kvmserver.errors import KvmserverError, StartError
from kvmserver.run_end import signal_name

# serve(worker number, its share of the threads, descriptor of its control socket, whether this is its first life);
# raises KvmserverError.
Serve = Callable[[int, int, int, bool], None]
Report = Callable[[Message], None]

_EVENTS = ("ready", "run_failed", "log", "stats", "drained", "failed")


def shares(threads: int, per_process: int) -> list[int]:
    """The threads of each worker: as few workers as possible, as even as possible."""
    count = -(-threads // per_process)
    return [threads // count + (index < threads % count) for index in range(count)]


@dataclass
class _Worker:
    number: int
    threads: int
    backoff: Backoff = field(default_factory=Backoff)
    pid: int = 0
    pidfd: int = -1
    control: Channel | None = None
    lives: int = 0
    ready: bool = False
    failure: str = ""
    restart_at_s: float | None = None


class WorkerPool:
    """All workers of the tenant. ``report`` passes a message on to the supervisor."""

    def __init__(self, serve: Serve, threads: Sequence[int], report: Report, supervisor: Channel) -> None:
        self._serve = serve
        self._report = report
        self._supervisor = supervisor
        self._workers = [_Worker(number, share) for number, share in enumerate(threads)]
        self._selector = selectors.DefaultSelector()
        self._selector.register(supervisor.fileno(), selectors.EVENT_READ, None)
        self._draining = False
        self._started = False

    def start(self, after_forks: Callable[[], None] | None = None) -> None:
        """Fork all workers and wait until each is ready. Raises StartError if one is not.

        ``after_forks`` is called here once all exist, to let go of what only they need.
        """
        # Objects that exist now are shared with the workers; the collector must not touch (and so copy) them there.
        gc.collect()
        gc.freeze()
        for worker in self._workers:
            self._fork(worker)
        if after_forks is not None:
            after_forks()
        while not all(worker.ready for worker in self._workers):
            if not self._turn():
                raise StartError("the supervisor is gone")
            for worker in self._workers:
                if not worker.pid:
                    raise StartError(worker.failure or f"worker {worker.number} ended before it could serve")
        self._started = True

    def run(self) -> None:
        """Watch the workers until they are drained or the supervisor is gone."""
        while self._turn():
            if self._draining and not any(worker.pid for worker in self._workers):
                return
        self.kill()

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self._workers:
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)

    def _turn(self) -> bool:
        """Handle what has happened; False if the supervisor is gone."""
        for key, _ in self._selector.select(self._timeout_s()):
            if key.data is None:
                if not self._from_supervisor():
                    return False
            elif key.fd == key.data.pidfd:
                self._reap(key.data)
            elif key.data.control is not None and key.fd == key.data.control.fileno():
                self._from_worker(key.data)
        self._restart_due()
        return True

    def _timeout_s(self) -> float | None:
        due = [worker.restart_at_s for worker in self._workers if worker.restart_at_s is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _from_supervisor(self) -> bool:
        messages = self._supervisor.receive()
        for message in messages or ():
            if message.get("do") == "drain":
                self._draining = True
            for worker in self._workers:
                if worker.control is not None:
                    worker.control.send(message)
                if self._draining:
                    worker.restart_at_s = None
        return messages is not None

    def _from_worker(self, worker: _Worker) -> None:
        try:
            messages = worker.control.receive() if worker.control else None
        except ChannelError as error:
            self._log("error", f"worker {worker.number} talks nonsense ({error}); it is ended")
            messages = None
        for message in messages or ():
            self._handle(worker, message)
        if messages is None:
            # Without its control socket a worker could not be drained: whatever it still does must end.
            self._close_control(worker)
            os.kill(worker.pid, signal.SIGKILL)

    def _handle(self, worker: _Worker, message: Message) -> None:
        event = message.get("event")
        if event == "ready":
            worker.ready = True
        elif event == "failed":
            worker.failure = str(message.get("message", ""))
        elif event in _EVENTS:
            self._report({**message, "worker": worker.number})

    def _fork(self, worker: _Worker) -> None:
        ours, theirs = channel.pair()
        tenant = os.getpid()
        worker.lives += 1
        pid = os.fork()
        if pid == 0:
            self._become_worker(worker, theirs, tenant)
        theirs.close()
        worker.pid, worker.control, worker.pidfd = pid, ours, os.pidfd_open(pid)
        worker.ready, worker.failure, worker.restart_at_s = False, "", None
        worker.backoff.started()
        self._selector.register(ours.fileno(), selectors.EVENT_READ, worker)
        self._selector.register(worker.pidfd, selectors.EVENT_READ, worker)

    def _become_worker(self, worker: _Worker, control: Channel, tenant: int) -> None:
        """The child's side of the fork; it must not return into the tenant's code, whatever happens."""
        status = 1
        try:
            lifeline.die_with_parent(tenant)
            small_pages.use_small_pages()
            self._selector.close()
            self._supervisor.close()
            for other in self._workers:
                if other.control is not None:
                    other.control.close()
                    os.close(other.pidfd)
            self._serve(worker.number, worker.threads, control.fileno(), worker.lives == 1)
            status = 0
        except KvmserverError as error:
            control.send({"event": "failed", "message": error.message})
        except BaseException as error:
            control.send({"event": "failed", "message": f"internal error: {type(error).__name__}: {error}"})
        finally:
            os._exit(status)

    def _close_control(self, worker: _Worker) -> None:
        if worker.control is not None:
            self._selector.unregister(worker.control.fileno())
            worker.control.close()
            worker.control = None

    def _reap(self, worker: _Worker) -> None:
        self._drain_control(worker)
        self._close_control(worker)
        self._selector.unregister(worker.pidfd)
        os.close(worker.pidfd)
        _, status = os.waitpid(worker.pid, 0)
        worker.pid, worker.pidfd, worker.ready = 0, -1, False
        if self._draining or not self._started:
            return
        delay_s = worker.backoff.delay_s()
        worker.restart_at_s = time.monotonic() + delay_s
        reason = worker.failure or _describe_status(status)
        self._log("error", f"worker {worker.number} ended ({reason}); starting it again in {delay_s:g}s")

    def _drain_control(self, worker: _Worker) -> None:
        """What the worker wrote before it ended is still in the socket."""
        try:
            while worker.control is not None and (messages := worker.control.receive()) is not None:
                for message in messages:
                    self._handle(worker, message)
        except ChannelError:
            pass

    def _restart_due(self) -> None:
        for worker in self._workers:
            if worker.restart_at_s is not None and worker.restart_at_s <= time.monotonic():
                self._fork(worker)

    def _log(self, level: str, message: str) -> None:
        self._report({"event": "log", "level": level, "message": message})


def _describe_status(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"status {code}" if code >= 0 else f"killed by {signal_name(-code)}"
