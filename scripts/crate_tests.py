"""The crate's unit tests as one program."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(*options: str) -> Path:
    """Build it; ``options`` are cargo's. Raises CalledProcessError."""
    words = ["cargo", "test", "-p", "vmm", "--lib", "--no-run", "--message-format=json-render-diagnostics", *options]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    artifacts = [json.loads(line) for line in done.stdout.splitlines()]
    (program,) = [Path(found["executable"]) for found in artifacts if found.get("executable")]
    return program
