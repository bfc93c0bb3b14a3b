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


def find_program(name: str, search_path: str, directory: str, what: str = "") -> Program:
    """Look ``name`` up as a shell does: with a slash it is a path (relative to ``directory``), else PATH is searched.

    Whether the file is a program that we can run is for the loader to say. ``what`` stands before the name in messages.
    """
    shown = f"{what}{name!r}"
    if not name or "\0" in name:
        raise ProgramNotFoundError(f"cannot run {shown}: not a file name")
    if "/" in name:
        path = os.path.join(directory, name)
        if not os.path.lexists(path):
            raise ProgramNotFoundError(f"cannot run {shown}: no such file")
        return Program(name, _checked(shown, path))
    candidates = [os.path.join(directory, part or ".", name) for part in search_path.split(":")]
    files = [path for path in candidates if os.path.isfile(path)]
    runnable = [path for path in files if os.access(path, os.X_OK)]
    if runnable:
        return Program(name, os.path.normpath(runnable[0]))
    if files:
        return Program(name, _checked(shown, files[0]))
    raise ProgramNotFoundError(f"cannot run {shown}: not found on PATH")


def _checked(shown: str, path: str) -> str:
    if os.path.isdir(path):
        raise ProgramNotExecutableError(f"cannot run {shown}: is a directory")
    if not os.path.exists(path):
        raise ProgramNotFoundError(f"cannot run {shown}: the symbolic link leads nowhere")
    if not os.access(path, os.X_OK):
        raise ProgramNotExecutableError(
            f"cannot run {shown}: permission denied", f"make it executable: chmod +x {path}"
        )
    return os.path.abspath(path)
