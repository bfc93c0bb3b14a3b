"""Program lookup follows the shell, with its exit codes."""

from pathlib import Path

import pytest

from kvmserver.errors import KvmserverError
from kvmserver.program import Program, find_program


def executable(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def test_a_bare_name_is_looked_up_on_the_path_in_order(tmp_path: Path) -> None:
    executable(tmp_path / "a" / "tool", 0o644)
    found = executable(tmp_path / "b" / "tool")
    executable(tmp_path / "c" / "tool")
    search = f"{tmp_path}/none:{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"
    assert find_program("tool", search, "/") == Program("tool", str(found))


def test_a_name_with_a_slash_is_a_path_from_the_directory(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "tool")
    program = find_program("./bin/tool", "", str(tmp_path))
    assert program == Program("./bin/tool", f"{tmp_path}/bin/tool")
    assert program.label == "tool"


def test_symbolic_links_are_kept(tmp_path: Path) -> None:
    executable(tmp_path / "python3.11")
    (tmp_path / "python").symlink_to("python3.11")
    assert find_program(f"{tmp_path}/python", "", "/").path == f"{tmp_path}/python"


def test_an_empty_part_of_the_path_is_the_directory(tmp_path: Path) -> None:
    executable(tmp_path / "tool")
    assert find_program("tool", "/none:", str(tmp_path)).path == f"{tmp_path}/tool"


@pytest.mark.parametrize("name", ["nosuch", "./nosuch", "/no/such", "", "a\0", "./dangling", "dir"])
def test_what_does_not_exist_is_127(name: str, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "dir").mkdir()
    with pytest.raises(KvmserverError) as caught:
        find_program(name, str(tmp_path), str(tmp_path))
    assert caught.value.exit_code == 127


@pytest.mark.parametrize("name", ["./dir", "./plain", "plain"])
def test_what_cannot_be_executed_is_126(name: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    executable(tmp_path / "plain", 0o644)
    with pytest.raises(KvmserverError) as caught:
        find_program(name, str(tmp_path), str(tmp_path))
    assert caught.value.exit_code == 126


def test_the_program_is_named_by_its_part(tmp_path: Path) -> None:
    executable(tmp_path / "plain", 0o644)
    for name in ("nosuch", "./plain", "plain", "./nosuch"):
        with pytest.raises(KvmserverError, match=f"cannot run the storage program '{name}': "):
            find_program(name, str(tmp_path), str(tmp_path), "the storage program ")
