"""The first disk and the kernel: a small Debian, made by mmdebstrap (as root, or in a user namespace)."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kvm_amd import cache

SUITE = "bookworm"
# kmod and mount start the machine; the rest is run by the tests and by scripts/bench inside it.
PACKAGES = ("python3", "kmod", "mount", "procps", "perl", "luajit", "cowsay", "musl", "wrk")
LEFT_OUT = ("doc", "man", "info", "locale", "lintian", "bash-completion")
HOOK = Path(__file__).with_name("hook.sh")
# This file: mmdebstrap's options are in it, too.
RECIPE = Path(__file__)

# Command, and the Debian package that has it.
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "mmdebstrap": "mmdebstrap", "genext2fs": "genext2fs"}
# What mmdebstrap needs besides where it is not run by root, and makes a user namespace.
TOOLS_OF_USERS = {"newuidmap": "uidmap"}


class MissingPackagesError(Exception):
    """Packages of Debian are missing on this machine; the text says which and how to get them."""


class BuildError(Exception):
    """A program that builds a part of the machine failed; the text is what it said."""


@dataclass(frozen=True)
class Image:
    """What QEMU starts from."""

    kernel: Path
    disk: Path


def check_tools() -> None:
    """Raise MissingPackagesError where one is missing."""
    needed = TOOLS if os.geteuid() == 0 else TOOLS | TOOLS_OF_USERS
    missing = [package for tool, package in needed.items() if shutil.which(tool) is None]
    if missing:
        names = " ".join(missing)
        raise MissingPackagesError(f"missing here: {names} (apt-get install -y --no-install-recommends {names})")


def run(words: list[str], cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a program to its end; its standard output. Raises BuildError with what it said."""
    done = subprocess.run(
        words, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        raise BuildError(f"{' '.join(words)} ended with {done.returncode}:\n{said}")
    return done.stdout


def key() -> str:
    """The hash of all that says how the image is made."""
    return cache.digest([RECIPE.read_bytes(), HOOK.read_bytes()])


def get(rebuild: bool = False) -> Image:
    """The image, made on first use (about a minute) or anew for ``rebuild``."""
    place = cache.get("image", key(), _build, rebuild)
    return Image(place / "vmlinuz", place / "disk.ext2")


def _build(place: Path) -> None:
    disk = place / "disk.ext2"
    run(
        [
            "mmdebstrap",
            "--variant=essential",
            f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
            f"--customize-hook={HOOK}",
            f"--customize-hook=copy-out /boot/vmlinuz {place}",
            "--customize-hook=rm -rf $1/boot/vmlinuz $1/var/cache/* $1/var/lib/apt/lists",
            "--format=ext2",
            SUITE,
            str(disk),
        ]
    )
