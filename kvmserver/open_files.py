"""The limit of open files (RLIMIT_NOFILE): every client's connection and every VM takes descriptors."""

import resource


def raise_limit() -> None:
    """As many open files as this process may have: its soft limit becomes the hard one, for it and those that it forks.

    The soft limit is 1024 on most systems for the sake of programs that call select(2), which none of ours does. A
    guest has a limit of its own, which is not touched.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
