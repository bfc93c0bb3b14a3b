"""Directories made once and kept by a hash of what they are made of."""

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

# Other content of the same name that is kept: two work trees side by side do not build in turn.
KEPT = 4


Build = Callable[[Path], None]


def root() -> Path:
    """Where everything is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kvmserver" / "kvm-amd"


def digest(parts: Iterable[bytes]) -> str:
    """One short hash of several byte strings, where one ends and the next begins included."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()[:20]


def digest_of_files(base: Path, names: Iterable[str]) -> str:
    """The hash of files: names, whether they may be executed, and content. Names of missing ones are left out."""

    def parts() -> Iterable[bytes]:
        for name in sorted(names):
            path = base / name
            if path.is_symlink():
                yield from (name.encode(), b"link", os.readlink(path).encode())
            elif path.is_file():
                yield from (name.encode(), b"x" if os.access(path, os.X_OK) else b"-", path.read_bytes())

    return digest(parts())


def get(name: str, key: str, build: Build, rebuild: bool = False) -> Path:
    """The directory ``name`` for this key; ``build`` fills it where there is none yet.

    One process builds at a time, and a directory appears whole or not at all. Builders' exceptions go through.
    """
    place = root()
    place.mkdir(parents=True, exist_ok=True)
    wanted = place / f"{name}-{key}"
    if wanted.is_dir() and not rebuild:
        os.utime(wanted)
        return wanted
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if wanted.is_dir() and not rebuild:
            return wanted
        print(f"kvm-amd: making the {name}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=place) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            build(made)
            if wanted.is_dir():
                shutil.rmtree(wanted)
            made.rename(wanted)
        _forget_old(place, name)
    return wanted


def _forget_old(place: Path, name: str) -> None:
    found = [path for path in place.glob(f"{name}-*") if path.is_dir()]
    for old in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
