#!/usr/bin/env python3
"""In the place of QEMU: the agent as an ordinary process, after as many starts that hang as the file ``hangs`` says."""

import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    hangs = HERE / "hangs"
    left = int(hangs.read_text())
    if left:
        hangs.write_text(str(left - 1))
        time.sleep(600)
    sys.path.insert(0, (HERE / "scripts").read_text())
    from kvm_amd import agent

    descriptor = next(int(found[1]) for word in sys.argv if (found := re.search(r"socket,.*fd=(\d+)", word)))
    print("Linux version", flush=True)
    shared = HERE / "share"
    shared.mkdir(exist_ok=True)
    agent.serve(agent.Host(descriptor), shared)
    time.sleep(600)


main()
