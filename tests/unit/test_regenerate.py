"""The generated pages are up to date and come from their tables."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvmserver.options import ROWS

from .conftest import Command

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "regenerate"


def run(command: Command, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=command.environment
    )


@pytest.mark.parametrize("page", ["configuration.md", "limits.md"])
def test_pages_made_from_sources_are_up_to_date(page: str, command: Command) -> None:
    result = run(command, "--check", "--only", page)
    assert result.returncode == 0, result.stderr


def test_pages_are_written_and_checked(command: Command, tmp_path: Path) -> None:
    words = ("--docs", str(tmp_path))
    assert run(command, "--check", *words).returncode == 1
    assert run(command, *words).returncode == 0
    assert run(command, "--check", *words).returncode == 0
    page = (tmp_path / "configuration.md").read_text()
    assert all(row.flag_name in page for row in ROWS)
    assert "| 1 | `write` | partial | some \\| note |" in (tmp_path / "syscalls.md").read_text()
