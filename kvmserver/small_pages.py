"""Request VMs get small pages, also where the kernel gives everybody huge ones.

With ``/sys/kernel/mm/transparent_hugepage/enabled`` on ``always``, as Debian and Red Hat ship it, a byte written to
fresh memory is backed by 2 MiB. Memory written by a request is counted in pages of 4 KiB (they are what a reset gives
back), so ``--max-request-memory`` would hold back a five-hundredth of what the request takes from the host.
"""

import ctypes
from pathlib import Path

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PR_SET_THP_DISABLE = 41
# Linux 6.18 and later: memory for which huge pages were asked (that shared with a storage program) still gets them.
_PR_THP_DISABLE_EXCEPT_ADVISED = 1 << 1


def use_small_pages(switch: Path = _SWITCH) -> None:
    """No huge pages for this process and its children unless they ask (prctl(2), PR_SET_THP_DISABLE)."""
    try:
        if "[always]" not in switch.read_text():
            return
    except OSError:
        # A kernel without huge pages.
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_THP_DISABLE, 1, _PR_THP_DISABLE_EXCEPT_ADVISED, 0, 0) != 0:
        libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
