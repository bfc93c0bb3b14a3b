"""``kvmserver guestlib DIRECTORY``: the library that guests find, its header and its wrappers, as files."""

from pathlib import Path

from kvmserver import _vmm
from kvmserver.errors import KvmserverError


def write(directory: Path, force: bool) -> list[Path]:
    """Write the files below ``directory``, which is made if need be; the paths of those that were not there already.

    Raises KvmserverError, before anything is written, if one of them has other content and ``force`` is not set.
    """
    files = {directory / path: content for path, content in _vmm.guest_files()}
    try:
        wanted = {path: content for path, content in files.items() if _content(path) != content}
        changed = [path for path in wanted if path.exists()]
        if changed and not force:
            names = ", ".join(str(path) for path in changed)
            raise KvmserverError(f"not overwritten, because the content is different: {names}", "--force overwrites")
        for path, content in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise KvmserverError(f"cannot write {error.filename}: {error.strerror}") from error
    return list(wanted)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
