"""What programs use of libkvmserverguest.so: the wrappers that ``kvmserver guestlib`` writes, and their examples."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import (
    PROGRAMS,
    PYTHON,
    TESTS,
    Guests,
    Kvmserver,
    Service,
    ask_often,
    build,
    clean_environment,
    find_tool,
    free_port,
)

ROOT = TESTS.parent
WARMUP = 20
OUTSIDE = "not inside kvmserver"
# What a language is allowed; a storage program never gets to listen, and the other one nothing else of the network.
READ = ("--allow-read",)
EVERYTHING = ("--allow-all",)


@dataclass(frozen=True)
class Pair:
    """The two programs of an example, ready to run; ``options`` are those of both."""

    storage: list[str]
    request: list[str]
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Kit:
    """The examples beside a guestlib/ that the command wrote, as they are in the repository; compiled on first use."""

    def __init__(self, directory: Path, kvmserver: Kvmserver, guests: Guests) -> None:
        self._guests = guests
        self.guestlib = directory / "guestlib"
        self.examples = directory / "docs" / "examples"
        done = kvmserver.run("guestlib", str(self.guestlib))
        assert done.returncode == 0, done.stderr.decode()
        shutil.copytree(
            ROOT / "docs" / "examples", self.examples, ignore=shutil.ignore_patterns("node_modules", "target")
        )
        self._pairs: dict[str, Pair] = {}

    def pair(self, language: str) -> Pair:
        """The example of a language."""
        if language not in self._pairs:
            makers: dict[str, Callable[[Path], Pair]] = {
                "c": self._c,
                "python": self._python,
                "deno": self._deno,
                "node": self._node,
                "rust": self._rust,
                "go": self._go,
            }
            self._pairs[language] = makers[language](self.examples / language)
        return self._pairs[language]

    def _c(self, directory: Path) -> Pair:
        cc = [find_tool("cc"), "-Wall", "-Wextra", "-Werror", "-O2", f"-I{self.guestlib}"]
        # The two ways: linked with the library, and looking for it at run time.
        build([*cc, "-o", "storage", "storage.c", f"-L{self.guestlib}", "-lkvmserverguest"], directory)
        build([*cc, "-o", "request", "request.c", str(self.guestlib / "kvmserverguest_dlopen.c")], directory)
        return Pair([str(directory / "storage")], [str(directory / "request")])

    def _python(self, directory: Path) -> Pair:
        path = str(self.guestlib / "python")
        storage, request = ([PYTHON, str(directory / f"{side}.py")] for side in ("storage", "request"))
        return Pair(storage, request, (*READ, "--env", f"PYTHONPATH={path}"), (("PYTHONPATH", path),))

    def _deno(self, directory: Path) -> Pair:
        deno = [find_tool("deno"), "run", "--allow-all"]
        return Pair([*deno, str(directory / "storage.ts")], [*deno, str(directory / "request.ts")], EVERYTHING)

    def _node(self, directory: Path) -> Pair:
        # The wrapper of this guestlib/, and koffi, with which Node calls a library; its own scripts need not run.
        build([find_tool("npm"), "install", "--ignore-scripts", "--no-audit", "--no-fund"], directory)
        node = find_tool("node")
        return Pair([node, str(directory / "storage.js")], [node, str(directory / "request.js")], READ)

    def _rust(self, directory: Path) -> Pair:
        build([find_tool("cargo"), "build", "--quiet", "--offline", "--target-dir", "target"], directory)
        binaries = directory / "target" / "debug"
        return Pair([str(binaries / "storage")], [str(binaries / "request")])

    def _go(self, directory: Path) -> Pair:
        binaries = directory / "bin"
        binaries.mkdir()
        self._guests.build_go(directory, binaries)
        return Pair([str(binaries / "storage")], [str(binaries / "request")])


@pytest.fixture(scope="module")
def kit(installed: Kvmserver, guests: Guests, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("kit").resolve(), installed, guests)


def serve(kvmserver: Kvmserver, pair: Pair, *options: str) -> Service:
    """Both programs with two request VMs, warmed up."""
    port = free_port()
    words = ["-e", "-t", "2", "--verify-reset", "--warmup", str(WARMUP), *pair.options, *options]
    # Under --allow-all that would take everything else away.
    listen = [] if pair.options == EVERYTHING else [f"--allow-listen=:{port}"]
    words += ["storage", *pair.storage, "++", "run", *listen, *pair.request, str(port)]
    return kvmserver.start(*words, port=port).wait_ready()


LANGUAGES = ["c", "python", "deno", "node", "rust", "go"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_counter_of_the_examples(language: str, kit: Kit, kvmserver: Kvmserver) -> None:
    """Answer k is WARMUP + k, with one client and with several: no number is lost, none comes twice."""
    service = serve(kvmserver, kit.pair(language))
    assert [service.ask().body for _ in range(3)] == ["21", "22", "23"]
    assert ask_often(service.port, 300, clients=6) == {str(number): 1 for number in range(24, 324)}
    kvmserver.stop(service)


@pytest.mark.parametrize("library", ["without the library", "with the library"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_examples_say_that_they_are_not_inside(language: str, library: str, kit: Kit) -> None:
    pair = kit.pair(language)
    there = {"LD_LIBRARY_PATH": str(kit.guestlib)} if library == "with the library" else {}
    # The one that is linked with the library cannot start without it.
    programs = [pair.request] if language == "c" and not there else [pair.storage, pair.request]
    for words in programs:
        environment = clean_environment(dict(pair.environment) | there)
        done = subprocess.run(
            [*words, str(free_port())],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 1, done
        assert OUTSIDE in done.stderr, done


def test_deno_without_a_wrapper(kvmserver: Kvmserver) -> None:
    """Programs for other hosts of this interface work as they are."""
    deno = [find_tool("deno"), "run", "--allow-all"]
    storage, request = (str(PROGRAMS / f"unwrapped_{side}.ts") for side in ("storage", "request"))
    service = serve(kvmserver, Pair([*deno, storage], [*deno, request], EVERYTHING))
    assert service.ask("/hello").body == "hello 21"
    numbers = ask_often(service.port, 200, clients=4, path="/w")
    assert numbers == {f"w {number}": 1 for number in range(22, 222)}
    kvmserver.stop(service)


def test_guestlib_writes_what_is_in_the_repository(kit: Kit) -> None:
    """All of guestlib/ but what only our own library is made of."""
    ours = {"clock_page.h", "guest_calls.h", "kvmserverguest.c", "vdso.c", "vdso.lds"}
    made = {"__pycache__", "fastpath", "node_modules", "target", "Cargo.lock"}
    paths = (path.relative_to(ROOT / "guestlib") for path in (ROOT / "guestlib").rglob("*") if path.is_file())
    names = {str(path) for path in paths if not made & set(path.parts)} - ours
    # What ran from there before, natively, may have left compiled Python.
    paths = (path.relative_to(kit.guestlib) for path in kit.guestlib.rglob("*") if path.is_file())
    written = {str(path) for path in paths if not made & set(path.parts)}
    assert written - {"libkvmserverguest.so"} == names
    assert all(
        (kit.guestlib / name).read_bytes() == (ROOT / "guestlib" / name).read_bytes() for name in set(names) - ours
    )


def test_guestlib_overwrites_nothing_unless_told(kvmserver: Kvmserver, scratch: Path) -> None:
    def write(*words: str) -> tuple[int, list[str], str]:
        done = kvmserver.run("guestlib", *words, str(scratch / "new"))
        return done.returncode, done.stdout.decode().split(), done.stderr.decode()

    code, files, _ = write()
    assert code == 0
    assert str(scratch / "new" / "libkvmserverguest.so") in files
    assert write() == (0, [], "")
    header = scratch / "new" / "kvmserverguest.h"
    original = header.read_bytes()
    header.write_text("mine\n")
    (scratch / "new" / "libkvmserverguest.so").unlink()
    code, _, error = write()
    assert code == 1
    assert str(header) in error
    assert "--force" in error
    assert not (scratch / "new" / "libkvmserverguest.so").exists()
    assert header.read_text() == "mine\n"
    assert write("--force")[0] == 0
    assert header.read_bytes() == original
    code, _, error = write("--force")
    assert (code, error) == (0, "")
    failed = kvmserver.run("guestlib", str(header))
    assert failed.returncode == 1
    assert failed.stderr.decode().startswith("error: cannot write ")
