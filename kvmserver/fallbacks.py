"""What kvmserver does where the kernel's KVM lacks something, for people.

``vmm/src/withheld.rs`` says how to force it.
"""

# By the names of the probe's answer: what is done instead, and what to do about it.
SENTENCES = {
    "dirty_ring": "a reset asks KVM for a bitmap of every 32 MiB in use: use Linux 5.11 or newer",
    "sync_registers": "registers travel by system calls, up to four for each exit: use a newer kernel",
}


def warnings(missing: list[str]) -> list[str]:
    """One sentence for each of the features that this KVM lacks."""
    return [f"this KVM has no {name.replace('_', ' ')}, so {SENTENCES[name]}" for name in missing]
