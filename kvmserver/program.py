"""From the program's name as typed to the file that is run."""

import os
from dataclasses import dataclass

from kvmserver.errors import ProgramNotExecutableError, ProgramNotFoundError


@dataclass(frozen=True)
class Program:
    """``name`` is argv[0] as typed, ``path`` the absolute file (symbolic links kept: venv and busybox look at them)."""

    name: str
    path: str

    @property
    def label(self) -> str:
        """What messages call it: the last component of the name."""
        return os.path.basename(self.name.rstrip("/")) or self.name


def find_program(name: str, search_path: str, directory: str) -> Program:
    """Look ``name`` up as a shell does: with a slash it is a path (relative to ``directory``), else PATH is searched.

    Whether the file is a program that we can run is for the loader to say.
    """
    if not name or "\0" in name:
        raise ProgramNotFoundError(f"cannot run {name!r}: not a file name")
    if "/" in name:
        path = os.path.join(directory, name)
        if not os.path.lexists(path):
            raise ProgramNotFoundError(f"cannot run {name!r}: no such file")
        return Program(name, _checked(name, path))
    candidates = [os.path.join(directory, part or ".", name) for part in search_path.split(":")]
    files = [path for path in candidates if os.path.isfile(path)]
    runnable = [path for path in files if os.access(path, os.X_OK)]
    if runnable:
        return Program(name, os.path.normpath(runnable[0]))
    if files:
        return Program(name, _checked(name, files[0]))
    raise ProgramNotFoundError(f"cannot run {name!r}: not found on PATH")


def _checked(name: str, path: str) -> str:
    if os.path.isdir(path):
        raise ProgramNotExecutableError(f"cannot run {name!r}: is a directory")
    if not os.path.exists(path):
        raise ProgramNotFoundError(f"cannot run {name!r}: the symbolic link leads nowhere")
    if not os.access(path, os.X_OK):
        raise ProgramNotExecutableError(
            f"cannot run {name!r}: permission denied", f"make it executable: chmod +x {path}"
        )
    return os.path.abspath(path)
