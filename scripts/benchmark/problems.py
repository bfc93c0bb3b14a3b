"""What cannot be measured: an hour of measuring is not thrown away because one program does not start."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from benchmark.results import Report


@contextmanager
def noted(name: str, report: Report, console: Console) -> Iterator[None]:
    """Go on where something fails; the report says what and why, and so does the console at once."""
    try:
        yield
    except (RuntimeError, OSError, subprocess.SubprocessError, SystemExit) as error:
        report.problems.append(f"{name}: {error}")
        console.print(f"error: {report.problems[-1]}", style="red", highlight=False, markup=False)
