"""The second disk, /usr/local of the machine: the project as it is in this work tree, installed.

Each part is kept by its own content: a change of a test makes a new disk in a second, a change of Rust a new wheel,
and only a change of the dependencies asks the package index.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from benchmark import tools
from kvm_amd import cache
from kvm_amd.image import BuildError, run

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
# What the wheel is made of.
WHEEL_SOURCES = ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE*", "vmm", "kvmserver", "guestlib")
# What is there as files. The documentation is read by tests.
TREE = ("pyproject.toml", "README.md", "tests", "scripts", "guestlib", "docs", "kvmserver", "vmm/Cargo.toml")
GUEST_SOURCES = ("tests/guests", "tests/harness.py", "guestlib", "scripts/bench_programs", "scripts/benchmark/tools.py")
# Of the test dependencies: linters and Deno (200 MB) stay outside.
TEST_PACKAGES = ("pytest", "pytest-timeout", "hypothesis")
# The system Python of the image.
PYTHON = "3.11"
SITE = f"lib/python{PYTHON}/dist-packages"
# Where the work tree is in the machine, and the compiled guests.
TREE_AT = "share/kvmserver"
GUESTS_AT = "share/kvmserver-guests"
# Below them, the C programs of scripts/bench.
BENCH = "bench"
# Room for __pycache__ and test leftovers.
FREE_BYTES = 64 << 20
BLOCK_BYTES = 4096


def files(*names: str) -> list[str]:
    """The files of the work tree below these names: all that git knows or would add."""
    return run(["git", "ls-files", "-z", "-co", "--exclude-standard", "--", *names], ROOT).split("\0")[:-1]


def requirements(pyproject: str) -> list[str]:
    """What the project needs at run time and for its core tests, from the text of pyproject.toml."""
    project = tomllib.loads(pyproject)["project"]

    def name(requirement: str) -> str:
        return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]

    tests = project["optional-dependencies"]["test"]
    return [*project["dependencies"], *(entry for entry in tests if name(entry) in TEST_PACKAGES)]


def get() -> Path:
    """The disk's image, made anew where something has changed."""
    wheel = cache.get("wheel", cache.digest_of_files(ROOT, files(*WHEEL_SOURCES)), _build_wheel)
    needed = requirements((ROOT / "pyproject.toml").read_text())
    site = cache.get("dependencies", cache.digest(word.encode() for word in (PYTHON, *needed)), _install(needed))
    guests = cache.get("guests", cache.digest_of_files(ROOT, files(*GUEST_SOURCES)), _compile_guests)
    tree = files(*TREE)
    own = [path.read_bytes() for path in sorted(HERE.glob("*.py"))]
    made_of = [part.name.encode() for part in (wheel, site, guests)]
    key = cache.digest([*made_of, cache.digest_of_files(ROOT, tree).encode(), *own])

    def build(place: Path) -> None:
        _build_disk(place, wheel, site, guests, tree)

    return cache.get("disk", key, build) / "disk.ext2"


def _pip(*words: str) -> None:
    run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words])


def _build_wheel(place: Path) -> None:
    _pip("wheel", "--no-deps", "--wheel-dir", str(place), str(ROOT))


def _install(needed: Sequence[str]) -> cache.Build:
    def build(place: Path) -> None:
        only = ("--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp")
        platforms = ("--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64")
        _pip("install", "--no-compile", "--target", str(place), *only, *platforms, *needed)
        _compile_bytecode(place)

    return build


def _compile_bytecode(place: Path) -> None:
    """Bytecode that is used whatever the files' times are; only the machine's own version can make it."""
    python = next((path for path in (sys.executable, f"python{PYTHON}", "/usr/bin/python3") if _is_version(path)), None)
    if python is not None:
        run([python, "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash", str(place)])


def _is_version(python: str) -> bool:
    path = shutil.which(python)
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    return path is not None and run([path, "-c", ask]).strip() == PYTHON


def _compile_guests(place: Path) -> None:
    run([sys.executable, "tests/harness.py", str(place)], ROOT)
    (place / BENCH).mkdir()
    for source in tools.COMPILED_SOURCES:
        try:
            tools.compile_program(source, place / BENCH)
        except subprocess.CalledProcessError as error:
            raise BuildError(str(error)) from error


def _build_disk(place: Path, wheel: Path, site: Path, guests: Path, tree: Sequence[str]) -> None:
    local = place / "local"
    shutil.copytree(site, local / SITE, symlinks=True)
    (built,) = wheel.glob("*.whl")
    _pip("install", "--no-deps", "--no-compile", "--upgrade", "--target", str(local / SITE), str(built))
    _compile_bytecode(local / SITE / "kvmserver")
    shutil.rmtree(local / SITE / "bin", ignore_errors=True)
    _write_commands(local)
    shutil.copytree(guests, local / GUESTS_AT)
    for name in tree:
        if (ROOT / name).is_file():
            target = local / TREE_AT / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    agent = local / "lib" / "kvm-amd"
    (agent / "kvm_amd").mkdir(parents=True)
    for source in HERE.glob("*.py"):
        shutil.copy2(source, agent / "kvm_amd")
    (agent / "agent.py").write_text("from kvm_amd.agent import main\n\nmain()\n")
    _compile_bytecode(agent)
    _write_file_system(local, place / "disk.ext2")
    shutil.rmtree(local)


def _write_commands(local: Path) -> None:
    """The scripts that pip would write, with the machine's Python."""
    (local / "bin").mkdir()
    for name, module, function in (("kvmserver", "kvmserver.cli", "main"), ("pytest", "pytest", "main")):
        script = local / "bin" / name
        script.write_text(
            f"#!/usr/bin/python3\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        )
        script.chmod(0o755)


def _write_file_system(directory: Path, disk: Path) -> None:
    count = used = 0
    for parent, directories, names in os.walk(directory):
        count += len(directories) + len(names)
        used += sum(Path(parent, name).lstat().st_size // BLOCK_BYTES + 1 for name in names) + len(directories)
    # A twentieth for indirect blocks and the tables of the file system itself.
    blocks = used + used // 20 + FREE_BYTES // BLOCK_BYTES
    sizes = ["-B", str(BLOCK_BYTES), "-b", str(blocks), "-N", str(2 * count + 4096)]
    run(["genext2fs", *sizes, "-q", "-U", "-d", str(directory), str(disk)])
