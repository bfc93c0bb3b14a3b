"""Durations and sizes with suffixes: one parser for the command line, the file and the documentation.

Durations are whole nanoseconds, sizes whole bytes. Arithmetic is exact (Decimal), so ``0.1s`` is 100 000 000 ns.
"""

import re
from decimal import ROUND_HALF_UP, Context, Decimal

DURATION_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
SIZE_UNITS_BYTES = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}

_SIZE_NAMES = {"b": "B", "kib": "KiB", "mib": "MiB", "gib": "GiB", "tib": "TiB"}
# Digits are bounded so that a value from a file cannot make a number of a million digits.
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)")
# 18 + 18 digits times an hour in nanoseconds: more digits than the default context's 28.
_EXACT = Context(prec=60)


def parse_duration(text: str) -> int:
    """Nanoseconds of ``250ms``, ``1.5s``, ``2m`` or of a bare number of seconds. Raises ValueError."""
    number, unit = _split(text, "a duration such as 250ms, 1.5s or 2m")
    factor = DURATION_UNITS_NS.get(unit.lower() or "s")
    if factor is None:
        raise ValueError(f"unknown unit {unit!r} in {text!r}: use ns, us, ms, s, m or h")
    return _scale(number, factor)


def parse_size(text: str) -> int:
    """Bytes of ``64MiB``, ``1.5GiB`` or of a bare number of MiB. Raises ValueError.

    Decimal units (``MB``) are refused instead of guessed, because half of all programs mean MiB by them.
    """
    number, unit = _split(text, "a size such as 64MiB or 8GiB")
    factor = SIZE_UNITS_BYTES.get(unit.lower() or "mib")
    if factor is None:
        raise ValueError(f"unknown unit {unit!r} in {text!r}: use B, KiB, MiB, GiB or TiB")
    return _scale(number, factor)


def format_duration(nanoseconds: int) -> str:
    """The shortest exact spelling: the largest unit that divides the value; ``parse_duration`` reads it back."""
    for unit, factor in reversed(DURATION_UNITS_NS.items()):
        if nanoseconds and nanoseconds % factor == 0:
            return f"{nanoseconds // factor}{unit}"
    return "0s"


def format_size(size_bytes: int) -> str:
    """The shortest exact spelling: the largest unit that divides the value; ``parse_size`` reads it back."""
    for unit, factor in reversed(SIZE_UNITS_BYTES.items()):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{_SIZE_NAMES[unit]}"
    return "0B"


def _split(text: str, wanted: str) -> tuple[Decimal, str]:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not {wanted}")
    return Decimal(match[1]), match[2]


def _scale(number: Decimal, factor: int) -> int:
    return int(_EXACT.multiply(number, Decimal(factor)).quantize(Decimal(1), rounding=ROUND_HALF_UP, context=_EXACT))
