"""scripts/soak, for a few thousand requests: it runs to its end, and finds nothing."""

import json
import subprocess
from pathlib import Path

from harness import PYTHON, TESTS


def test_a_short_soak_of_mixed_requests_finds_nothing(tmp_path: Path) -> None:
    """Beside wrk uploads, clients that go away in the middle, and requests that fail."""
    looks = tmp_path / "looks.json"
    words = [PYTHON, str(TESTS.parent / "scripts/soak"), "--mixed", "--requests", "6000", "--turn", "2"]
    done = subprocess.run([*words, "--connections", "8", "--json", str(looks)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(looks.read_text())
    assert found["complaints"] == []
    assert found["looks"][-1]["requests"] >= 6000
