"""What the functional tests stand on: compiled guests, the installed command, started servers, a plain HTTP client.

Goals: tests drive the ``kvmserver`` script as a user does; nothing sleeps where it can wait for a condition with a
deadline; every server is started with ``--verify-reset``; and whatever a failed test started can be read afterwards.
"""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import forked_command

TESTS = Path(__file__).parent
GUESTS = TESTS / "guests"
GUESTLIB = TESTS.parent / "guestlib"
PROGRAMS = TESTS / "programs"
PYTHON = sys.executable
# Answers with what its request says.
SHAPES_SERVER = [PYTHON, str(PROGRAMS / "shapes.py")]

START_S = 60.0
STOP_S = 20.0
# For slow machines (scripts/kvm-core-tests): repetitions are divided by this, and commands are forked.
FEWER = int(os.environ.get("KVMSERVER_TEST_FEWER", "1"))
FORK = "KVMSERVER_TEST_FORK" in os.environ
# A line of the log that says that the isolation itself is broken; no test may ever see one.
FATAL_LOG = re.compile(
    r"panicked|internal error|differs from (its|the) snapshot|cannot reset a VM|Traceback", re.IGNORECASE
)

INSTALL_HINTS = {
    "curl": "apt-get install -y curl",
    "cc": "apt-get install -y gcc libc6-dev",
    "musl-gcc": "apt-get install -y musl-tools",
    "luajit": "apt-get install -y luajit",
    "perl": "apt-get install -y perl",
    "/usr/games/cowsay": "apt-get install -y cowsay",
    "node": "apt-get install -y nodejs",
    "npm": "apt-get install -y npm",
    "go": "apt-get install -y golang-go, or put Go below /usr/local/go",
    "cargo": "install Rust (https://rustup.rs), and put its directory on PATH",
    "deno": "pip install deno",
    "redis-server": "apt-get install -y redis-server",
    "wrk": "apt-get install -y wrk",
    "slowhttptest": "apt-get install -y slowhttptest",
}


class MissingToolError(AssertionError):
    """A tool that a test needs is not installed; tests fail on it, they are not skipped."""


def find_tool(name: str) -> str:
    """The path of a tool, or MissingToolError with the line that installs it."""
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath), "/usr/local/go/bin", "/usr/games"])
    found = shutil.which(name, path=path)
    if found is None:
        raise MissingToolError(f"{name} is missing: {INSTALL_HINTS.get(name, 'install it')}")
    return found


# How each kind of program is linked.
FLAVOURS = {
    "dynamic": ("cc", ()),
    "static": ("cc", ("-static",)),
    "static-pie": ("cc", ("-static-pie", "-fPIE")),
    "musl": ("musl-gcc", ("-static",)),
    "musl-dynamic": ("musl-gcc", ()),
}

# The programs that the tests run in all of them.
FLAVOURED = ("peer_bugs", "run_time_code", "server_epoll")

# The wrong pointers and lengths are the point of these programs.
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-Wno-stringop-overread", "-Wno-stringop-overflow"]
WARNINGS += ["-Wno-nonnull", "-Wno-array-bounds", "-Wno-dangling-pointer"]


class Guests:
    """The C and Go programs below tests/, compiled on first use and once a session."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def c(self, name: str, flavour: str = "dynamic") -> str:
        """The path of tests/guests/NAME.c, compiled."""
        compiler, flags = FLAVOURS[flavour]
        output = self._directory / flavour / name
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            source = GUESTS / f"{name}.c"
            words = [find_tool(compiler), "-O2", "-g", *WARNINGS, "-pthread", *flags, "-o", str(output), str(source)]
            needed = ["-lm"]
            if "kvmserverguest.h" in source.read_text():
                # As its users do: linked by name, and found by the loader inside the guest alone.
                needed += [f"-L{self._guest_library().parent}", "-lkvmserverguest"]
            build([*words, *needed], GUESTS)
        return str(output)

    def all_c(self) -> None:
        """Compile every program, those that run in all flavours in all of them: for a machine without a compiler."""
        for source in GUESTS.glob("*.c"):
            for flavour in FLAVOURS if source.stem in FLAVOURED else ("dynamic",):
                self.c(source.stem, flavour)

    def _guest_library(self) -> Path:
        """libkvmserverguest.so to link with; inside a guest it is kvmserver's own that is loaded."""
        library = self._directory / "guestlib" / "libkvmserverguest.so"
        if not library.exists():
            library.parent.mkdir(parents=True, exist_ok=True)
            options = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-soname=libkvmserverguest.so"]
            build([find_tool("cc"), *options, "-o", str(library), "kvmserverguest.c"], GUESTLIB)
        return library

    def go(self) -> str:
        """The path of the Go server of tests/programs/go, compiled."""
        output = self._directory / "go" / "counter"
        if not output.exists():
            self.build_go(PROGRAMS / "go", output)
        return str(output)

    def build_go(self, source: Path, output: Path) -> None:
        """Compile the commands of a Go module. Where it has several, the output is a directory that exists."""
        cache = {"GOCACHE": str(self._directory / "go-cache"), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
        build([find_tool("go"), "build", "-o", str(output), "./..."], source, cache)


def build(words: Sequence[str], directory: Path, environment: dict[str, str] | None = None) -> None:
    """Run a compiler in a directory; AssertionError with what it said if it fails."""
    done = subprocess.run(words, cwd=directory, env=os.environ | (environment or {}), capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")


def repetitions(number: int) -> int:
    """How often to do what is done often only to find what happens seldom."""
    return max(number // FEWER, 1)


def start_in_child(words: Sequence[str], environment: dict[str, str]) -> Callable[[], object] | None:
    """What ``subprocess`` has to call in the child: nothing, unless commands are forked."""
    return forked_command.in_child(words, environment) if FORK else None


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float, what: str, pause_s: float = 0.01) -> None:
    """Return as soon as the condition holds; AssertionError after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(pause_s)


@dataclass(frozen=True)
class Answer:
    """What a server answered to one request."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)


def ask(port: int, path: str = "/", method: str = "GET", body: bytes | None = None, timeout_s: float = 30.0) -> Answer:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path, body=body, headers={"Connection": "close"})
        response = connection.getresponse()
        content = response.read().decode("latin-1")
        return Answer(response.status, content, {name.lower(): value for name, value in response.getheaders()})
    finally:
        connection.close()


def exchange(port: int, data: bytes, timeout_s: float = 30.0) -> bytes:
    """Everything a server sends on one connection until it closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as client:
        client.sendall(data)
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                received += piece
        return bytes(received)


def ask_often(port: int, count: int, clients: int = 1, path: str = "/") -> dict[str, int]:
    """How often each answer came to ``count`` requests from ``clients`` clients at once; bad ones with their status."""

    def some(number: int) -> list[str]:
        answers = (ask(port, path) for _ in range(number))
        return [answer.body.strip() if answer.status == 200 else f"{answer.status} {answer.body}" for answer in answers]

    shares = [count // clients + (index < count % clients) for index in range(clients)]
    seen: dict[str, int] = {}
    with ThreadPoolExecutor(clients) as pool:
        for bodies in pool.map(some, shares):
            for body in bodies:
                seen[body] = seen.get(body, 0) + 1
    return seen


@dataclass(frozen=True)
class Ready:
    """The two start-up lines, taken apart."""

    lines: list[str]
    program: str
    wait: str
    vms: int
    ephemeral: bool
    values: dict[str, int]


_PROGRAM_LINE = re.compile(r"Program '([^']+)' loaded\. (\w+) vm=(\d+)( ephemeral)?((?: \w+=\d+(?:ms|MB))*)")


def parse_ready(lines: list[str]) -> Ready:
    """The line that begins with ``Program``, which must have exactly the promised shape."""
    line = next(line for line in lines if line.startswith("Program"))
    match = _PROGRAM_LINE.fullmatch(line)
    assert match, f"not the promised shape: {line!r}"
    values = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", match[5])}
    return Ready(lines, match[1], match[2], int(match[3]), match[4] is not None, values)


class Service:
    """One started ``kvmserver`` process. The log is in a file, so that a full pipe never stops it."""

    def __init__(self, words: Sequence[str], directory: Path, environment: dict[str, str], port: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.words = list(words)
        self.port = port
        self.ready: Ready | None = None
        self._out, self._log = directory / "stdout", directory / "stderr"
        with self._out.open("wb") as out, self._log.open("wb") as log:
            # A group of its own, so that nothing of it can outlive the test.
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=start_in_child(words, environment),
            )

    @property
    def output(self) -> str:
        """Standard output so far."""
        return self._out.read_text(errors="replace")

    @property
    def log(self) -> str:
        """Standard error so far."""
        return self._log.read_text(errors="replace")

    def wait_ready(self, seconds: float = START_S) -> "Service":
        """Wait for the line that begins with ``Program``."""
        deadline = time.monotonic() + seconds
        while True:
            lines = self.output.split("\n")[:-1]
            if any(line.startswith("Program") for line in lines):
                self.ready = parse_ready(lines)
                return self
            if self.process.poll() is not None:
                raise AssertionError(f"kvmserver ended with {self.process.returncode} before it served\n{self.story()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no line 'Program ...' within {seconds:g} s\n{self.story()}")
            time.sleep(0.005)

    def ask(self, path: str = "/", method: str = "GET", body: bytes | None = None, timeout_s: float = 30.0) -> Answer:
        """One request over a connection of its own."""
        return ask(self.port, path, method, body, timeout_s)

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait_log(self, pattern: str, seconds: float = 10.0) -> str:
        """The first line of the log that contains the pattern, awaited."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.log.splitlines() if re.search(pattern, line)]
            return bool(found)

        wait_until(look, seconds, f"no log line {pattern!r}\n{self.story()}")
        return found[0]

    def stop(self, seconds: float = STOP_S) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"kvmserver did not end within {seconds:g} s of SIGTERM\n{self.story()}") from None
        assert not FATAL_LOG.search(self.log), f"the log says that something is broken\n{self.story()}"
        return code

    def kill(self) -> None:
        """End the whole group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def statistics(self, seconds: float = 5.0) -> dict[str, float]:
        """The counters that SIGUSR1 makes the supervisor log."""
        numbers: dict[str, float] = {"workers": 0}

        def told() -> bool:
            before = self.log.count(" statistics ")
            self.signal(signal.SIGUSR1)
            wait_until(lambda: self.log.count(" statistics ") > before, seconds, f"no statistics\n{self.story()}")
            line = [line for line in self.log.splitlines() if " statistics " in line][-1]
            numbers.update((name, float(number)) for name, number in re.findall(r"([\w.]+)=([\d.]+)", line))
            # On a very busy machine the workers' answers may come after the supervisor's patience is over.
            return numbers["workers"] > 0

        wait_until(told, 4 * seconds, "no worker answers")
        return numbers

    def story(self) -> str:
        """What it was and said, for a failed test."""
        out, log = self.output[-4000:], self.log[-8000:]
        return f"$ {' '.join(self.words)}\n-- stdout --\n{out}\n-- stderr --\n{log}"


def processes_below(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return direct + [below for child in direct for below in processes_below(child)]


def open_descriptors(service: Service) -> int:
    """Open descriptors of the server's processes."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes_below(service.process.pid))


class Kvmserver:
    """The installed command, run in a clean environment with ``environment`` added."""

    def __init__(self, directory: Path, environment: dict[str, str] | None = None) -> None:
        self._directory = directory
        self._environment = environment or {}
        self._count = 0
        self.services: list[Service] = []
        script = Path(sysconfig.get_path("scripts")) / "kvmserver"
        if not script.exists():
            raise MissingToolError("kvmserver is not installed in this environment: pip install '.[test]'")
        self.script = str(script)
        if FORK:
            forked_command.preload()

    def run(
        self,
        *words: str,
        stdin: bytes | None = b"",
        timeout_s: float = 120.0,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command to its end."""
        command = [self.script, *words]
        clean = clean_environment(self._environment | (environment or {}))
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            env=clean,
            cwd=cwd or self._directory,
            preexec_fn=start_in_child(command, clean),
        )

    def start(
        self, *words: str, port: int = 0, environment: dict[str, str] | None = None, wrapper: Sequence[str] = ()
    ) -> Service:
        """Start the command, by another that ``wrapper`` names, and wait for nothing."""
        self._count += 1
        directory = self._directory / f"service-{self._count}"
        # For running all tests another way (.ci/run); what a test itself says in front of its program wins.
        options = os.environ.get("KVMSERVER_TEST_OPTIONS", "").split()
        service = Service(
            [*wrapper, self.script, *options, *words],
            directory,
            clean_environment(self._environment | (environment or {})),
            port,
        )
        self.services.append(service)
        return service

    def serve(
        self,
        program: Sequence[str],
        port: int,
        *options: str,
        threads: int = 1,
        warmup: int = 0,
        grants: Sequence[str] = ("--allow-all",),
        environment: dict[str, str] | None = None,
        start_s: float = START_S,
        storage: Sequence[str] = (),
        wrapper: Sequence[str] = (),
    ) -> Service:
        """Start an isolated server, with every reset verified, and wait until it serves.

        ``storage`` is the storage program beside it, its own options in front; ``program`` may begin with options, too.
        """
        words = ["-e", "-t", str(threads), "--verify-reset", *grants, *options]
        words += ["--warmup", str(warmup)] if warmup else []
        words += ["storage", *storage, "++"] if storage else []
        command = (*words, "run", *program)
        return self.start(*command, port=port, environment=environment, wrapper=wrapper).wait_ready(start_s)

    @contextlib.contextmanager
    def serving(self, program: Sequence[str], *options: str, threads: int = 1, warmup: int = 0) -> Iterator[Service]:
        """One for many tests: a server whose last argument is its port, stopped after the last of them."""
        port = free_port()
        service = self.serve([*program, str(port)], port, *options, threads=threads, warmup=warmup)
        yield service
        self.stop(service)

    def stop(self, service: Service) -> None:
        """Stop one; it must end with exit code 0."""
        self.services.remove(service)
        try:
            if service.ready is not None and service.process.poll() is None and "-e" in service.words:
                # Log lines are limited, the counter of VMs that could not be reset is not.
                assert service.statistics()["discarded"] == 0, service.story()
            code = service.stop()
            assert code == 0, f"exit code {code} after SIGTERM\n{service.story()}"
        finally:
            service.kill()

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for service in self.services:
            service.kill()
        self.services.clear()


def clean_environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """The environment without what would change what a test sees."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVMSERVER_", "DENO_"))}
    scripts = sysconfig.get_path("scripts")
    return kept | {"PATH": f"{scripts}{os.pathsep}{kept.get('PATH', os.defpath)}"} | (more or {})


class EchoPeers:
    """TCP, UDP and unix peers that send back what they get, for the client side of a guest's sockets."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: list[socket.socket] = []
        self.tcp_port = self._listen(socket.AF_INET, ("127.0.0.1", 0))
        (directory / "echo").unlink(missing_ok=True)
        self._listen(socket.AF_UNIX, str(directory / "echo"))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", 0))
        self._open.append(datagrams)
        self.udp_port = int(datagrams.getsockname()[1])
        threading.Thread(target=self._echo_datagrams, args=(datagrams,), daemon=True).start()

    def _listen(self, family: int, address: tuple[str, int] | str) -> int:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen(64)
        self._open.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1]) if family == socket.AF_INET else 0

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._echo, args=(client,), daemon=True).start()

    @staticmethod
    def _echo(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)

    @staticmethod
    def _echo_datagrams(datagrams: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, sender = datagrams.recvfrom(65536)
                datagrams.sendto(data, sender)

    def close(self) -> None:
        """No more answers."""
        for opened in self._open:
            opened.close()


@contextlib.contextmanager
def native(words: Sequence[str], port: int, environment: dict[str, str] | None = None) -> Iterator[int]:
    """The program as an ordinary process; the port it serves on."""
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=clean_environment(environment)
    )

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        wait_until(listens, START_S, f"{words[0]} does not listen natively")
        yield port
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    Guests(Path(sys.argv[1])).all_c()
