"""What programs need from the registries: installed below ~/.cache/kvmserver, once for each content of a lock file."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmark.tools import PROGRAMS, tool

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmserver" / "benchmark"


def cached(name: str, sources: list[Path], fill: Callable[[Path], None]) -> Path:
    """A directory that ``fill`` has filled from the sources; made anew only when one of them changes."""
    digest = hashlib.sha256()
    for text in [sys.version.encode(), *(source.read_bytes() for source in sources)]:
        digest.update(len(text).to_bytes(8, "little") + text)
    place = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    if place.is_dir():
        return place
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        made = Path(work, "made")
        made.mkdir()
        fill(made)
        try:
            made.rename(place)
        except OSError:
            # Another run was faster.
            if not place.is_dir():
                raise
    return place


def page() -> Path:
    """The directory of page.js with React beside it."""
    names = ("package.json", "package-lock.json", "page.js")
    sources = [PROGRAMS / "page" / name for name in names]

    def fill(directory: Path) -> None:
        for source in sources:
            shutil.copy(source, directory)
        npm = tool("npm", "apt-get install -y npm")
        _run([npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], directory)

    return cached("page", sources, fill)


def python_servers() -> Path:
    """Directories that have uvicorn and gunicorn, for PYTHONPATH."""
    requirements = PROGRAMS / "asgi" / "requirements.txt"

    def fill(directory: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--require-hashes", "--target", str(directory), "-r", str(requirements)], directory)

    return cached("python", [requirements], fill)


def go_program(directory: Path) -> str:
    """The path of the compiled Go program."""
    go = tool("go", "apt-get install -y golang-go")
    output = directory / "hello_go"
    _run([go, "build", "-o", str(output), "."], PROGRAMS / "hello_go")
    return str(output)


def _run(words: list[str], directory: Path) -> None:
    done = subprocess.run(words, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(words)} ended with {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
