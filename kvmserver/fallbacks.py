"""What kvmserver does where the kernel lacks something, for people.

``vmm/src/withheld.rs`` says how to force it.
"""

# By the names of the probe's answer: what is missing, and what that means and what to do about it.
SENTENCES = {
    "dirty_ring": (
        "this KVM has no dirty ring",
        "a reset asks KVM for a bitmap of every 32 MiB in use: use Linux 5.11 or newer",
    ),
    "sync_registers": (
        "this KVM has no synchronised registers",
        "registers travel by system calls, up to four for each exit: use a newer kernel",
    ),
    "pagemap_scan": (
        "this kernel has no PAGEMAP_SCAN",
        "--verify-reset is slower and snapshots hold pages that were only read, too: use Linux 6.7 or newer",
    ),
    "time_stamp_counter": (
        "this KVM gives guests a time-stamp counter of their own",
        "each look at a clock is a system call: use Linux 5.16 or newer",
    ),
    "fsgsbase": (
        "this KVM does not offer FSGSBASE",
        "programs set the bases of FS and GS by system calls: use a processor (or a hypervisor's setting) that has it",
    ),
}


def warnings(missing: list[str]) -> list[str]:
    """One sentence for each of the features that are missing."""
    return [", so ".join(SENTENCES[name]) for name in missing]


def advice(missing: list[str]) -> str:
    """What the missing features mean, and what to do."""
    return "; ".join(SENTENCES[name][1] for name in missing)
