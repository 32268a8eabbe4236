"""Parses numbers in headers and query strings. Python's int and float accept more than such a number may be: signs, blanks, 1_0, digits
of other scripts."""

from __future__ import annotations

import re

_HEXADECIMAL = re.compile(rb"[0-9a-fA-F]+")
_DECIMAL = re.compile(rb"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
MAX_DIGITS = 19
"""besides zeros in front, which Python's int does not take any number of"""


def whole_number(text: bytes) -> int | None:
    """None for what is none, or has too many digits."""
    digits = text.lstrip(b"0") or text[-1:]
    return int(digits) if text.isdigit() and len(digits) <= MAX_DIGITS else None


def hexadecimal_number(text: bytes) -> int | None:
    return int(text, 16) if _HEXADECIMAL.fullmatch(text) else None


def decimal_number(text: bytes) -> float | None:
    """0 or more, with or without an exponent."""
    return float(text) if _DECIMAL.fullmatch(text) else None
