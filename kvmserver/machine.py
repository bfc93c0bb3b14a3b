"""What psutil and /proc tell about this machine and our processes."""

import contextlib
import errno
import os
import socket

import psutil

from kvmserver.errors import KvmserverError

KVM_DEVICE = "/dev/kvm"
# Below this not even the smallest program and its snapshot fit beside the rest of the system.
MEMORY_NEEDED_BYTES = 64 << 20


def kvm_problem() -> tuple[str, str]:
    """Why /dev/kvm cannot be used and what to do about it; two empty texts if it can."""
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hints = {
            errno.ENOENT: "load the module (modprobe kvm_intel or kvm_amd), or give the machine nested virtualization",
            errno.EACCES: "add the user to the group of /dev/kvm (usermod -aG kvm USER) and log in again",
        }
        hint = hints.get(error.errno or 0, "kvmserver doctor says what this machine lacks")
        return f"cannot open {KVM_DEVICE}: {reason}", hint
    return "", ""


def check_before_start() -> None:
    """Find out early, in one sentence, that nothing can run here. Raises KvmserverError."""
    problem, hint = kvm_problem()
    if problem:
        raise KvmserverError(problem, hint)
    available = psutil.virtual_memory().available
    if available < MEMORY_NEEDED_BYTES:
        raise KvmserverError(
            f"only {available >> 20} MiB of memory are available, at least {MEMORY_NEEDED_BYTES >> 20} MiB are needed"
        )


def is_port_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of all IPv4 addresses now; port 0 always."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody listens on now."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def resident_bytes() -> int:
    """Memory of this process and all below it, with each shared page counted once (the sum of their PSS)."""
    try:
        ours = psutil.Process()
        return sum(_proportional_bytes(process) for process in [ours, *ours.children(recursive=True)])
    except psutil.Error:
        return 0


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        # A locked-down worker may hide its maps; its resident size is the upper bound that is left.
        with contextlib.suppress(psutil.Error):
            return int(process.memory_info().rss)
    return 0
