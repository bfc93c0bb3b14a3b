"""QEMU, and the conversation with the agent in it.

One start in a dozen hangs before the kernel prints its first line, at no fault of what runs inside. A start is
therefore given ``FIRST_LINE_S`` to print and ``HELLO_S`` to say hello, and is tried again. From then on it works.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from kvm_amd import share
from kvm_amd.agent import PORT_NAME, Start
from kvm_amd.frames import BrokenStreamError, Decoder, Kind, encode, encode_json, write_all
from kvm_amd.image import Image

STARTS = 5
FIRST_LINE_S = 12.0
HELLO_S = 60.0
# Of which commands do not get the first one: see leave_first_processor in agent.py.
CPUS = 3
MEMORY_MIB = 3072
# The kernel's notices only: every character on the console costs the software CPU an exit.
# No defences against speculation, which this CPU does not do: the detours of every indirect jump cost it a quarter.
KERNEL = (
    "console=ttyS0 earlyprintk=serial,ttyS0 loglevel=6 panic=-1 tsc=reliable mitigations=off "
    "root=/dev/nvme0n1 rw init=/init"
)
PIECE_BYTES = 1 << 16
CONSOLE_LINES = 60


class MachineError(Exception):
    """The machine did not start, or ended before the command did; the text has the last lines of its console."""


class TimeLimitError(Exception):
    """The command ran longer than it may."""


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    # From the start of the QEMU that came up to the moment in which the command was handed over, seconds. The shared
    # directory is copied after that.
    started_after_s: float
    # What the kernel printed while the command ran: warnings, where something went wrong in it.
    kernel_log: str = ""


def qemu_words(image: Image, project: Path, descriptor: int) -> list[str]:
    """The command line of QEMU."""
    disks = [word for number, path in enumerate((image.disk, project)) for word in _disk(number, path)]
    return [
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt", "-smp", str(CPUS), "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(image.kernel), "-append", KERNEL),
        *disks,
        *("-device", "virtio-serial", "-chardev", f"socket,id=host,fd={descriptor}"),
        *("-device", f"virtserialport,chardev=host,name={PORT_NAME}"),
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
    ]


def _disk(number: int, path: Path) -> tuple[str, ...]:
    # What the machine writes is thrown away with it. NVMe, because Debian's kernel has that driver built in.
    drive = f"file={path},if=none,id=disk{number},format=raw,snapshot=on"
    return ("-drive", drive, "-device", f"nvme,drive=disk{number},serial=disk{number}")


class Machine:
    """One start of QEMU."""

    def __init__(self, image: Image, project: Path) -> None:
        self._socket, theirs = socket.socketpair()
        self._console = tempfile.TemporaryFile()  # noqa: SIM115 (closed in stop)
        self._decoder = Decoder()
        self.began = time.monotonic()
        with theirs:
            self._process = subprocess.Popen(
                qemu_words(image, project, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=self._console,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # Not in the terminal's group: Ctrl-C is ours to handle.
                start_new_session=True,
            )

    def fileno(self) -> int:
        """The descriptor that messages come from."""
        return self._socket.fileno()

    def console(self) -> str:
        """What the console has shown so far."""
        size = os.fstat(self._console.fileno()).st_size
        return os.pread(self._console.fileno(), size, 0).decode(errors="replace")

    def last_lines(self) -> str:
        """The end of it, for an error's text."""
        return "\n".join(self.console().splitlines()[-CONSOLE_LINES:])

    def send(self, data: bytes) -> None:
        """Hand over messages. Raises MachineError where nobody is there any more."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise MachineError(f"the machine is gone ({error.strerror}):\n{self.last_lines()}") from error

    def receive(self) -> list[tuple[Kind, bytes]]:
        """Read once. Raises MachineError where the machine has ended or talks nonsense."""
        try:
            data = self._socket.recv(PIECE_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            raise MachineError(f"the machine ended before the command did:\n{self.last_lines()}")
        try:
            return self._decoder.feed(data)
        except BrokenStreamError as error:
            raise MachineError(str(error)) from error

    def wait_hello(self) -> bool:
        """Whether it came up in time."""
        while True:
            now = time.monotonic() - self.began
            limit = HELLO_S if "Linux version" in self.console() else FIRST_LINE_S
            if now > limit or self._process.poll() is not None:
                return False
            if select.select([self], [], [], 0.2)[0]:
                return any(kind is Kind.HELLO for kind, _ in self.receive())

    def stop(self) -> None:
        """Switch it off. Nothing in it is worth a shutdown: its disks are thrown away."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._console.close()


@contextlib.contextmanager
def started(image: Image, project: Path) -> Iterator[Machine]:
    """A machine that has said hello. Raises MachineError where none did in STARTS starts."""
    for number in range(1, STARTS + 1):
        machine = Machine(image, project)
        try:
            if machine.wait_hello():
                yield machine
                return
            lines = machine.last_lines()
        finally:
            machine.stop()
        where = "after it had begun to print" if "Linux version" in lines else "before the kernel printed"
        print(f"kvm-amd: start {number} of {STARTS} hung {where}", file=sys.stderr)
    raise MachineError(f"no start of {STARTS} came up; the last one's console:\n{lines}")


def run(image: Image, project: Path, start: Start, shared: Path | None, limit_s: float | None) -> Outcome:
    """Run one command in a fresh machine. Raises MachineError, TimeLimitError."""
    with started(image, project) as machine:
        machine.send(encode_json(Kind.START, asdict(start)))
        outcome = Outcome(0, time.monotonic() - machine.began)
        if shared is not None:
            share.send(shared, lambda piece: machine.send(encode(Kind.SHARE, piece)))
        printed = len(machine.console())
        with _input(machine, start.terminal), tempfile.TemporaryFile() as archive:
            outcome.status = _converse(machine, archive, None if limit_s is None else time.monotonic() + limit_s)
            if shared is not None:
                archive.seek(0)
                share.receive(archive, shared)
        outcome.kernel_log = machine.console()[printed:].strip()
    return outcome


def _converse(machine: Machine, archive: IO[bytes], deadline: float | None) -> int:
    outputs = {Kind.OUTPUT: 1, Kind.ERROR: 2}
    while True:
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            raise TimeLimitError
        if not select.select([machine], [], [], timeout)[0]:
            continue
        for kind, payload in machine.receive():
            if kind in outputs:
                write_all(outputs[kind], payload)
            elif kind is Kind.SHARE:
                archive.write(payload)
            elif kind is Kind.EXIT:
                return int(json.loads(payload)["status"])


@contextlib.contextmanager
def _input(machine: Machine, terminal: bool) -> Iterator[None]:
    """Standard input goes to the machine where it is a terminal's; other commands have none."""
    if not terminal:
        machine.send(encode(Kind.INPUT))
        yield
        return
    before = termios.tcgetattr(0)
    stop, stop_writer = os.pipe()
    thread = threading.Thread(target=_forward_terminal, args=(machine, stop), daemon=True)
    try:
        tty.setraw(0)
        thread.start()
        yield
    finally:
        os.write(stop_writer, b".")
        thread.join()
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(stop)
        os.close(stop_writer)


def _forward_terminal(machine: Machine, stop: int) -> None:
    size: os.terminal_size | None = None
    with contextlib.suppress(MachineError, OSError):
        while True:
            # Asked now and then: a handler of SIGWINCH could only run in the main thread, which is busy with output.
            if (now := os.get_terminal_size(0)) != size:
                size = now
                machine.send(encode_json(Kind.SIZE, {"rows": now.lines, "columns": now.columns}))
            ready = select.select([0, stop], [], [], 0.5)[0]
            if stop in ready:
                return
            if 0 in ready:
                machine.send(encode(Kind.INPUT, os.read(0, 4096)))
