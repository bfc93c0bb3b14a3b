"""A directory as a tar stream of messages, and a stream as a directory again.

What comes back replaces what was sent: a file that the command removed is gone afterwards. The stream comes from a
machine that ran tests of a sandbox, so it is not trusted: names stay below the directory, nothing is written through a
symbolic link, and there are no special files and no owners. (tarfile's filters came with Python 3.11.4, and Debian 12,
on which both ends run, has 3.11.2.)
"""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

PIECE_BYTES = 1 << 16
# Times go through a decimal fraction on their way.
SAME_TIME_S = 1e-5


class _Pieces(io.RawIOBase):
    """A file to write to, whose content goes on in pieces."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        """Hand on everything, at most PIECE_BYTES at once."""
        view = memoryview(data)  # type: ignore[arg-type]
        for start in range(0, len(view), PIECE_BYTES):
            self._send(bytes(view[start : start + PIECE_BYTES]))
        return len(view)


def _kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what no archive can carry over: sockets are not named by tarfile at all, devices and FIFOs are here."""
    return member if member.isreg() or member.isdir() or member.issym() or member.islnk() else None


def send(directory: Path, send_piece: Callable[[bytes], None]) -> None:
    """Everything below a directory, as pieces of a tar stream; an empty piece ends it."""
    with (
        io.BufferedWriter(_Pieces(send_piece), PIECE_BYTES) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        archive.add(directory, arcname=".", filter=_kept)
    send_piece(b"")


def receive(stream: IO[bytes], directory: Path) -> None:
    """Make a directory what the tar stream says. Raises tarfile.TarError for a stream that is broken or leads outside.

    Files that are equal by size, time and mode are not written again, so that build caches stay.
    """
    wanted: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = os.path.normpath(member.name)
            if name == ".":
                continue
            wanted.add(name)
            target = _place(directory, name)
            if _unchanged(member, target):
                continue
            if target.is_symlink() or (target.exists() and not (target.is_dir() and member.isdir())):
                _remove(target)
            _extract(archive, member, directory, target)
    _remove_others(directory, wanted)


def _place(directory: Path, name: str) -> Path:
    """Where a name of the stream is; tarfile.TarError where that is outside, or behind a symbolic link."""
    target = directory / name
    parents = target.relative_to(directory).parents if not name.startswith(("/", "..")) else None
    if parents is None or any((directory / parent).is_symlink() for parent in parents if parent != Path(".")):
        raise tarfile.ExtractError(f"{name!r} leads out of the shared directory")
    return target


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path, target: Path) -> None:
    if member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        os.link(_place(directory, os.path.normpath(member.linkname)), target, follow_symlinks=False)
    elif member.isdir():
        target.mkdir(exist_ok=True)
        target.chmod(member.mode & 0o777 | 0o700)
    elif member.isreg() and (content := archive.extractfile(member)) is not None:
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(member.mode & 0o777)
        os.utime(target, (member.mtime, member.mtime))
    else:
        raise tarfile.ExtractError(f"{member.name!r} is neither a file nor a directory nor a link")


def _unchanged(member: tarfile.TarInfo, target: Path) -> bool:
    if not member.isreg() or target.is_symlink() or not target.is_file():
        return False
    status = target.stat()
    same_mode = status.st_mode & 0o777 == member.mode & 0o777
    return same_mode and status.st_size == member.size and abs(status.st_mtime - member.mtime) < SAME_TIME_S


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _remove_others(directory: Path, wanted: set[str]) -> None:
    for parent, directories, files in os.walk(directory, topdown=False):
        for entry in (*files, *directories):
            path = Path(parent, entry)
            if str(path.relative_to(directory)) not in wanted and _portable(path):
                _remove(path)


def _portable(path: Path) -> bool:
    """Whether :func:`send` would have sent it: what was never sent is not missing."""
    return path.is_symlink() or path.is_file() or path.is_dir()
