"""Process 1 of the machine: sets it up, runs one command, and tells the host everything.

Runs on the image's Python with nothing but its standard library, frames.py and share.py.
"""

import ctypes
import fcntl
import json
import os
import platform
import pty
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from kvm_amd import share
from kvm_amd.frames import Decoder, Kind, encode, encode_json, write_all

PORT_NAME = "kvm-amd"
MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/dev/shm"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/var/tmp"),
    ("tmpfs", "/run"),
    ("tmpfs", "/root"),
    ("tmpfs", "/share"),
    ("cgroup2", "/sys/fs/cgroup"),
)
MODULES = ("virtio_pci", "virtio_console", "kvm-amd")
OPEN_FILES = (1024, 1 << 20)
RB_POWER_OFF = 0x4321FEDC
KVM_CREATE_VM, KVM_CREATE_VCPU = 0xAE01, 0xAE41
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
# What is still in the pipes when the command has ended is read for this long: a process that it left may hold them.
LAST_OUTPUT_S = 0.5
PIECE_BYTES = 1 << 15


class SetupError(Exception):
    """The machine cannot be made ready."""


@dataclass
class Start:
    """What the host wants to be run."""

    command: list[str]
    directory: str
    environment: dict[str, str]
    terminal: bool
    shared: bool


@dataclass
class Running:
    """The command, and the ends of its channels that are ours."""

    process: int
    outputs: dict[int, Kind]
    stdin: int
    terminal: bool
    unwritten: bytearray = field(default_factory=bytearray)


def mount_everything() -> None:
    """The file systems that programs expect."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, target in MOUNTS:
        Path(target).mkdir(parents=True, exist_ok=True)
        options = b"mode=1777" if kind == "tmpfs" else None
        if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, options) != 0:
            raise SetupError(f"cannot mount {target}: {os.strerror(ctypes.get_errno())}")
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        Path("/dev", name).symlink_to(f"/proc/self/fd{target}")


def set_limits() -> None:
    """Open files as a distribution has them (the kernel alone has a hard limit of 4096), and no core files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))


def raise_loopback() -> None:
    """The loopback interface, the only one there is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack_from("H", request, 16)[0] | IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))
    socket.sethostname("kvm-amd")


def open_port() -> int:
    """The virtio port that leads to the host."""
    subprocess.run(["/sbin/modprobe", "-a", *MODULES], check=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for port in Path("/sys/class/virtio-ports").glob("*"):
            name = (port / "name").read_text().strip() if (port / "name").exists() else ""
            if name == PORT_NAME:
                return os.open(f"/dev/{port.name}", os.O_RDWR)
        time.sleep(0.01)
    raise SetupError("there is no virtio port to the host")


def hold_vcpu() -> None:
    """A VM with a VCPU that stays until the end and never runs.

    With its first VM, and its first VCPU without an interrupt controller, the kernel patches its own code (the static
    keys preempt_notifier_key and kvm_has_noapic_vcpu), and back after the last. Where one CPU runs such an instruction
    while another patches it, QEMU's translation may keep the breakpoint that is only there meanwhile (seen with 7.2 in
    __schedule: memory had the jump, the CPU met the breakpoint for ever).
    """
    vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), KVM_CREATE_VM, 0)
    fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)


def leave_first_processor() -> None:
    """Keep this process and all that it starts, and so every virtual machine, from the first processor.

    QEMU (cpu_clear_ignne, seen in 7.2) lets every processor that loads x87 state write the first one's flags, and not
    atomically. Where the first one enters or leaves a virtual machine at that moment, it forgets that nested paging is
    on, or that interrupts are: the virtual machine is shut down, or this machine panics, hangs or ends without a word.
    """
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {0})


class Host:
    """The other end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._decoder = Decoder()
        self._messages: list[tuple[Kind, bytes]] = []

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """One message."""
        write_all(self.port, encode(kind, payload))

    def send_json(self, kind: Kind, value: dict[str, Any]) -> None:
        """One message with an object in it."""
        write_all(self.port, encode_json(kind, value))

    def read(self) -> None:
        """Read once. Raises SetupError where the host is gone: nobody waits for this machine any more."""
        data = os.read(self.port, PIECE_BYTES)
        if not data:
            raise SetupError("the host is gone")
        self._messages += self._decoder.feed(data)

    def pending(self) -> list[tuple[Kind, bytes]]:
        """All whole messages that have been read."""
        taken, self._messages = self._messages, []
        return taken

    def next(self) -> tuple[Kind, bytes]:
        """Wait for one message."""
        while not self._messages:
            self.read()
        return self._messages.pop(0)


def receive_start(host: Host, shared: Path) -> Start:
    """The command, and before it what is shared."""
    kind, payload = host.next()
    if kind is not Kind.START:
        raise SetupError(f"the host begins with {kind.name}")
    start = Start(**json.loads(payload))
    if start.shared:
        with tempfile.TemporaryFile() as archive:
            while piece := _shared_piece(host):
                archive.write(piece)
            archive.seek(0)
            share.receive(archive, shared)
    return start


def _shared_piece(host: Host) -> bytes:
    kind, payload = host.next()
    if kind is not Kind.SHARE:
        raise SetupError(f"{kind.name} in the middle of the shared directory")
    return payload


def spawn(start: Start) -> Running:
    """Start the command in a session of its own."""
    if start.terminal:
        process, master = pty.fork()
        if process == 0:
            execute(start)
        return Running(process, {master: Kind.OUTPUT}, master, True)
    stdin, output, error = os.pipe(), os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        for number, descriptor in enumerate((stdin[0], output[1], error[1])):
            os.dup2(descriptor, number)
        execute(start)
    for descriptor in (stdin[0], output[1], error[1]):
        os.close(descriptor)
    os.set_blocking(stdin[1], False)
    return Running(process, {output[0]: Kind.OUTPUT, error[0]: Kind.ERROR}, stdin[1], False)


def execute(start: Start) -> NoReturn:
    """Become the command, as a shell would: 127 where there is none, 126 where it cannot be run."""
    status = 126
    try:
        # Python ignores these two, and a command would inherit that.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(start.directory)
        os.execvpe(start.command[0], start.command, start.environment)
    except FileNotFoundError as error:
        status = 127
        os.write(2, f"kvm-amd: {start.command[0]}: {error.strerror}\n".encode())
    except Exception as error:
        os.write(2, f"kvm-amd: {start.command[0]}: {error}\n".encode())
    finally:
        os._exit(status)


def reap(process: int) -> int | None:
    """Bury every child that has ended; the exit status of this one, where it is among them."""
    found = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if ended == 0:
            return found
        if ended == process:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def forward(running: Running, descriptor: int, host: Host) -> bool:
    """One piece of output to the host; False at its end."""
    try:
        data = os.read(descriptor, PIECE_BYTES)
    except OSError:
        # EIO: a terminal that nobody has open any more.
        data = b""
    if not data:
        return False
    host.send(running.outputs[descriptor], data)
    return True


def take_input(running: Running, host: Host) -> None:
    """What the host says while the command runs."""
    for kind, payload in host.pending():
        if kind is Kind.SIZE:
            size = json.loads(payload)
            fcntl.ioctl(running.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", size["rows"], size["columns"], 0, 0))
        elif kind is Kind.INPUT and payload:
            running.unwritten += payload
        elif kind is Kind.INPUT and not running.terminal and running.stdin >= 0:
            os.close(running.stdin)
            running.stdin = -1


def write_input(running: Running) -> None:
    """As much standard input as the command takes now."""
    try:
        written = os.write(running.stdin, running.unwritten)
        del running.unwritten[:written]
    except BlockingIOError:
        pass
    except OSError:
        running.unwritten.clear()


def supervise(running: Running, host: Host) -> int:
    """Until the command has ended; its exit status."""
    wake, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    status: int | None = reap(running.process)
    deadline = 0.0
    take_input(running, host)
    while status is None or (running.outputs and time.monotonic() < deadline):
        readable = [wake, host.port, *running.outputs]
        writable = [running.stdin] if running.unwritten and running.stdin >= 0 else []
        timeout = None if status is None else max(deadline - time.monotonic(), 0)
        ready, can_write, _ = select.select(readable, writable, [], timeout)
        if wake in ready:
            os.read(wake, 4096)
        if host.port in ready:
            host.read()
            take_input(running, host)
        if can_write:
            write_input(running)
        for descriptor in [one for one in running.outputs if one in ready]:
            if not forward(running, descriptor, host):
                del running.outputs[descriptor]
        if status is None and (status := reap(running.process)) is not None:
            deadline = time.monotonic() + LAST_OUTPUT_S
    return status


def serve(host: Host, shared: Path) -> None:
    """One command from start to end; ``shared`` is where the shared directory goes."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    host.send_json(Kind.HELLO, {"kernel": platform.release(), "uptime_s": uptime})
    start = receive_start(host, shared)
    status = supervise(spawn(start), host)
    if start.shared:
        share.send(shared, lambda piece: host.send(Kind.SHARE, piece))
    host.send_json(Kind.EXIT, {"status": status})


def say(text: str, console: IO[str] | None = None) -> None:
    """To the console, whose last lines the host shows where no command ended."""
    print(f"kvm-amd: {text}", file=console or sys.stderr, flush=True)


def main() -> NoReturn:
    """Set up, run, and wait for the host to switch the machine off."""
    try:
        mount_everything()
        set_limits()
        raise_loopback()
        port = open_port()
        hold_vcpu()
        leave_first_processor()
        serve(Host(port), Path("/share"))
        while True:
            signal.pause()
    except BaseException:
        say(traceback.format_exc())
    # The console is read to its end by the host, which sees that the machine is gone.
    ctypes.CDLL(None).reboot(RB_POWER_OFF)
    os._exit(1)
