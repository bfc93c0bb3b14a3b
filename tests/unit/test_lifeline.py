"""A process that asked for it dies with its parent."""

import os
import subprocess
import sys

CHILD = "from kvmserver import lifeline; lifeline.die_with_parent({pid}); print('alive', flush=True)"


def test_a_child_of_the_right_parent_lives() -> None:
    result = subprocess.run([sys.executable, "-c", CHILD.format(pid=os.getpid())], capture_output=True, text=True)
    assert result.stdout == "alive\n"


def test_a_child_whose_parent_is_gone_ends_at_once() -> None:
    result = subprocess.run([sys.executable, "-c", CHILD.format(pid=1)], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
