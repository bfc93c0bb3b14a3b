"""The one process that stays: starts the tenant, watches and restarts it, takes the signals, writes the log.

Runs on uvloop and never touches a request. The tenant is a child process, told what to do by one message and heard
through its events (tenant.py); the guest inherits our standard input, output and error through it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

from kvmserver import channel, listen, log, machine, permissions, plan, start_output
from kvmserver.backoff import Backoff
from kvmserver.channel import LINE_BYTES_MAX, ChannelError, Message
from kvmserver.config import Config
from kvmserver.errors import EXIT_FAILURE, EXIT_SIGNAL_BASE, KvmserverError, StartError
from kvmserver.log import LOGGER
from kvmserver.run_end import signal_name
from kvmserver.service_stats import Statistics

# The workers end a drain by themselves after DRAIN_TIME_NS; this much later they are taken to be stuck.
_DRAIN_GRACE_S = 1.0

OnServing = Callable[[], Awaitable[None]]


def run(config: Config, on_serving: OnServing | None = None) -> int:
    """Run the configured programs to their end and return our exit code. Raises KvmserverError.

    ``on_serving`` is awaited beside the service once it is up; when it raises, the service ends.
    """
    _open_missing_standard_descriptors()
    log.set_up(config.options.verbose)
    directory = os.getcwd()
    files = plan.find_programs(config, os.environ.get("PATH", os.defpath), directory)
    machine.check_before_start()
    environment, dropped = plan.without_undecodable(os.environ)
    if dropped and any(program.options.allow_all or program.options.allow_env for program in config.programs):
        LOGGER.warning("variables that are not valid UTF-8 are not passed on: %s", ", ".join(map(ascii, dropped)))
    activated = listen.activated(environment, os.getpid())
    resolved = plan.resolve(config, files, directory, environment, permissions.resolve_with_system)
    with contextlib.ExitStack() as stack:
        sockets = listen.open_sockets(config.options.listen or activated, stack)
        start = plan.start_message(config, resolved, sockets)
        return uvloop.run(Supervisor(start, start_output.StartOutput(start), on_serving).run())


def _open_missing_standard_descriptors() -> None:
    """Where 0, 1 or 2 is closed, our own sockets would take its place, and the guest would be given them."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.dup(fd)
    os.close(fd)


@dataclass
class _Life:
    """One life of the tenant process: what its events said."""

    process: asyncio.subprocess.Process
    writer: asyncio.StreamWriter
    serving: bool = False
    ended: Message | None = None
    failed: KvmserverError | None = None
    drained: list[Message] = field(default_factory=list)


class Supervisor:
    """Keeps one tenant alive until it is told to stop or the program is over."""

    def __init__(self, start: Message, output: start_output.StartOutput, on_serving: OnServing | None = None) -> None:
        self._start = start
        self._output = output
        self._on_serving = on_serving
        self._program = str(start["program"])
        self._life: _Life | None = None
        self._served = False
        self._stop_signal = 0
        self._stopped = asyncio.Event()
        self._statistics = Statistics()
        self._companion: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """The exit code. Raises KvmserverError if the first start fails."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._on_statistics_signal)
        try:
            return await self._run_lives()
        finally:
            self._output.close()
            if self._companion is not None:
                self._companion.cancel()

    async def _run_lives(self) -> int:
        backoff = Backoff()
        while True:
            backoff.started()
            life = await self._live()
            if self._stop_signal:
                return self._exit_code_after_stop()
            if not self._served:
                return self._exit_code_of_start(life)
            reason = life.failed.message if life.failed else _describe(life.process.returncode)
            delay_s = backoff.delay_s()
            LOGGER.error("the tenant of %r ended (%s); starting it again in %gs", self._program, reason, delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), delay_s)
            if self._stop_signal:
                return self._exit_code_after_stop()

    async def _live(self) -> _Life:
        """Start the tenant and listen to it until it is over."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            fd = theirs.fileno()
            # -P keeps the working directory, which may be anybody's, out of the tenant's module path.
            words = (sys.executable, "-P", "-m", "kvmserver.tenant", str(fd), str(os.getpid()))
            process = await asyncio.create_subprocess_exec(*words, pass_fds=(fd, *self._start["listen_fds"]))
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
        life = self._life = _Life(process, writer)
        if self._stop_signal:
            self._kill()
        self._send(self._start)
        try:
            await self._listen(life, reader)
        finally:
            self._life = None
            writer.close()
        await process.wait()
        return life

    async def _listen(self, life: _Life, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
                if not line.endswith(b"\n"):
                    return
                self._on_event(life, channel.decode(line))
            except (ConnectionError, ChannelError, ValueError, KeyError, TypeError) as error:
                LOGGER.error("the tenant of %r talks nonsense (%s); it is ended", self._program, error)
                self._kill()
                return

    def _on_event(self, life: _Life, message: Message) -> None:
        match message.get("event"):
            case "storage_ready":
                self._output.storage_ready(message)
            case "ready":
                self._output.ready(message)
            case "warmup":
                self._output.progress(int(message["done"]))
            case "serving":
                self._on_tenant_serves(life, message)
            case "ended":
                life.ended = message
            case "failed":
                code, hint = int(message["exit_code"]), str(message["hint"])
                life.failed = StartError(log.escape(str(message["message"])), log.escape(hint), code)
            case "log" | "run_failed":
                LOGGER.log(log.level_of(message.get("level")), "%s", message.get("message"))
            case "stats":
                self._statistics.add(message)
            case "drained":
                life.drained.append(message)

    def _on_tenant_serves(self, life: _Life, message: Message) -> None:
        life.serving = True
        self._statistics.workers = int(message["workers"])
        if self._served:
            LOGGER.warning("program %r serves again", self._program)
            return
        self._served = True
        self._output.serving(message)
        if self._on_serving is not None:
            self._companion = asyncio.ensure_future(self._on_serving())
            self._companion.add_done_callback(self._on_companion_done)

    def _on_companion_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            LOGGER.error("%s", error)
            self._on_stop_signal(signal.SIGTERM)

    def _on_stop_signal(self, number: int) -> None:
        first, life = not self._stop_signal, self._life
        self._stop_signal = self._stop_signal or number
        self._stopped.set()
        if first and life is not None and life.serving:
            LOGGER.info("%s: finishing what runs", signal.Signals(number).name)
            self._send({"do": "drain"})
            wait_s = plan.DRAIN_TIME_NS / 1e9 + _DRAIN_GRACE_S
            asyncio.get_running_loop().call_later(wait_s, self._kill)
            return
        self._served = self._served and first
        self._kill()

    def _on_statistics_signal(self) -> None:
        if self._life is None or not self._life.serving:
            LOGGER.info("statistics: not serving yet", extra=log.ASKED_FOR)
            return
        self._statistics.ask(asyncio.get_running_loop())
        self._send({"do": "stats"})

    def _send(self, message: Message) -> None:
        if self._life is not None:
            self._life.writer.write(channel.encode(message))

    def _kill(self) -> None:
        """End the tenant at once; its workers follow it (lifeline.py)."""
        if self._life is not None:
            with contextlib.suppress(ProcessLookupError):
                self._life.process.kill()

    def _exit_code_after_stop(self) -> int:
        """0 if the service was drained; as if the signal had ended us where there was nothing to drain."""
        return 0 if self._served else EXIT_SIGNAL_BASE + self._stop_signal

    def _exit_code_of_start(self, life: _Life) -> int:
        if life.failed is not None:
            raise life.failed
        if life.ended is None:
            hint = "the log above may say more; kvmserver doctor says what this machine lacks"
            raise StartError(
                f"the process that ran {self._program!r} ended ({_describe(life.process.returncode)})", hint
            )
        if message := life.ended.get("message"):
            LOGGER.error("%s", message)
        code: Any = life.ended.get("exit_code")
        return code if isinstance(code, int) and 0 <= code <= 255 else EXIT_FAILURE


def _describe(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal_name(-returncode)}"
    return f"status {returncode}"
