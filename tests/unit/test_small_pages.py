"""Huge pages are given up where everybody gets them, and there alone."""

import subprocess
import sys
from pathlib import Path

import pytest

# 42 is PR_GET_THP_DISABLE; bit 0 says that they are off.
CHILD = """
import ctypes, pathlib
from kvmserver.small_pages import use_small_pages
use_small_pages(pathlib.Path({switch!r}))
print(ctypes.CDLL(None).prctl(42, 0, 0, 0, 0) & 1)
"""


@pytest.mark.parametrize(
    ("text", "are_off"),
    [("[always] madvise never\n", 1), ("always [madvise] never\n", 0), ("always madvise [never]\n", 0), (None, 0)],
)
def test_huge_pages_are_off_where_everybody_gets_them(text: str | None, are_off: int, tmp_path: Path) -> None:
    switch = tmp_path / "enabled"
    if text is not None:
        switch.write_text(text)
    child = CHILD.format(switch=str(switch))
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout == f"{are_off}\n"
