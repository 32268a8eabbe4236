"""Checks numbers in schemas: engines must represent them exactly.

Engines compute with 64-bit floats. They would round larger or longer numbers (and so allow invalid answers), and some constants crash
the process. Such numbers are refused by their path, except limits near the range of 64-bit integers: these become the largest exact
integer, which is stricter.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.keywords import COUNTS, LOWER, UPPER

MAX_EXACT = 2**53 - 1
MAX_DIGITS = 15
"""decimal digits that a 64-bit float always holds"""
MAX_DECIMALS = 9
MAX_COUNT = 2**31 - 1


def check_numbers(node: dict[str, Any], path: str) -> None:
    """Looks at what one schema object says itself, and changes limits beyond what is exact. Raises GrammarError."""
    for key in ("const", "enum"):
        if key in node:
            _check_values(node[key], f"{path}/{key}")
    for keys, sign in ((LOWER, -1), (UPPER, 1)):
        for key in keys:
            value: Any = node.get(key)
            if _is_number(value):
                node[key] = _limit(value, sign, f"{path}/{key}")
    if "multipleOf" in node:
        _check_step(node["multipleOf"], f"{path}/multipleOf")
    for key in COUNTS:
        if key in node:
            _check_count(node, key, f"{path}/{key}")


def _check_step(value: Any, path: str) -> None:
    if not _is_number(value) or value <= 0:
        raise GrammarError(f"json_schema: {path} must be a number above 0", "json_schema")
    _check(value, path)


def _check_count(node: dict[str, Any], key: str, path: str) -> None:
    """No answer is longer than MAX_COUNT."""
    value = node[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GrammarError(f"json_schema: {path} must be a whole number, 0 or more", "json_schema")
    if value <= MAX_COUNT:
        return
    if key.startswith("min"):
        raise GrammarError(f"json_schema: {path} is larger than {MAX_COUNT}, and no answer is that long", "json_schema")
    del node[key]


def _limit(value: int | float, sign: int, path: str) -> int | float:
    if math.isfinite(value) and value * sign > MAX_EXACT:
        return sign * MAX_EXACT
    _check(value, path)
    return value


def _check_values(value: Any, path: str) -> None:
    """Every number in a value, however deep."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)
        elif _is_number(part):
            _check(part, path)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(value: int | float, path: str) -> None:
    why = None
    if not math.isfinite(value) or abs(value) > MAX_EXACT:
        why = f"lies beyond {MAX_EXACT}, up to where numbers are exact"
    elif isinstance(value, float):
        _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
        if len(digits) > MAX_DIGITS:
            why = f"has more than {MAX_DIGITS} digits"
        elif isinstance(exponent, int) and -exponent > MAX_DECIMALS:
            why = f"has more than {MAX_DECIMALS} decimals"
    if why is not None:
        shown = str(value)[:40]
        raise GrammarError(
            f"json_schema: the number {shown} at {path} {why}; write it as a string or leave it out", "json_schema"
        )
