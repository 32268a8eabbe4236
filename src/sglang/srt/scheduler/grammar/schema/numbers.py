"""Checks numbers in schemas: engines must represent them exactly.

Engines compute with 64-bit floats and 64-bit integers. They would round larger or longer numbers (and so allow invalid answers), and
some constants crash the process. Such numbers are refused by their path, except limits near the range of 64-bit integers: these
become the largest exact number, which is stricter.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.keywords import COUNTS, LOWER, UPPER

MAX_EXACT = 2**53 - 1
MAX_WHOLE = 2**63 - 1024
"""the largest number that 64 bits hold as an integer and as a float"""
MAX_DIGITS = 15
"""decimal digits that a 64-bit float always holds"""
MAX_DECIMALS = 9
MAX_COUNT = 2**31 - 1
TOGETHER = "are too large to hold together"


def check_numbers(node: dict[str, Any], path: str) -> None:
    """Looks at what one schema object says itself, and changes limits beyond what is exact. Raises GrammarError."""
    for key in ("const", "enum"):
        if key in node:
            _check_values(node[key], f"{path}/{key}")
    whole = is_whole(node)
    for keys, sign in ((LOWER, -1), (UPPER, 1)):
        for key in keys:
            value: Any = node.get(key)
            if _is_number(value):
                node[key] = _limit(value, sign, f"{path}/{key}", MAX_WHOLE if whole else MAX_EXACT)
    if whole and any(abs(node.get(key, 0)) > MAX_EXACT for key in (*LOWER, *UPPER)):
        _include_limits(node)
    if "multipleOf" in node:
        _check_step(node["multipleOf"], f"{path}/multipleOf")
    for key in COUNTS:
        if key in node:
            _check_count(node, key, f"{path}/{key}")


def is_whole(node: dict[str, Any]) -> bool:
    """Whether all numbers that one schema object allows are integers, by its type."""
    kinds = node.get("type")
    named = [kinds] if isinstance(kinds, str) else kinds
    return isinstance(named, list) and "integer" in named and "number" not in named


def _include_limits(node: dict[str, Any]) -> None:
    """Limits of integers on both sides that are themselves allowed: engines take the next float for what lies above a large one."""
    low = [math.ceil(node.get(LOWER[0], -MAX_WHOLE)), math.floor(node.pop(LOWER[1], -MAX_WHOLE - 1)) + 1]
    high = [math.floor(node.get(UPPER[0], MAX_WHOLE)), math.ceil(node.pop(UPPER[1], MAX_WHOLE + 1)) - 1]
    node[LOWER[0]], node[UPPER[0]] = max(low), min(high)


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


def _limit(value: int | float, sign: int, path: str, most: int) -> int | float:
    if math.isfinite(value) and value * sign > most:
        return sign * most
    _check(value, path, most)
    return value


def _check_values(value: Any, path: str) -> None:
    for number in _numbers_in(value):
        _check(number, path, MAX_WHOLE if isinstance(number, int) else MAX_EXACT)


def _numbers_in(value: Any) -> Iterator[int | float]:
    """Every number in a value, however deep."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)
        elif _is_number(part):
            yield part


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(value: int | float, path: str, most: int = MAX_EXACT) -> None:
    why = None
    if not math.isfinite(value) or abs(value) > most:
        why = f"lies beyond {most}, up to where numbers are exact"
    elif isinstance(value, float):
        _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
        if len(digits) > MAX_DIGITS:
            why = f"has more than {MAX_DIGITS} digits"
        elif isinstance(exponent, int) and -exponent > MAX_DECIMALS:
            why = f"has more than {MAX_DECIMALS} decimals"
    if why is not None:
        raise refused_number(value, path, why)


def refused_number(value: int | float, path: str, why: str) -> GrammarError:
    """The error for a number that an engine does not hold."""
    shown = str(value)[:40]
    return GrammarError(f"json_schema: the number {shown} at {path} {why}; write it as a string or leave it out", "json_schema")


# --- engines that compute with floats ---------------------------------------------------------------------------------------


def check_floats(node: dict[str, Any], path: str, largest_step: int) -> None:
    """For an engine that reads integers as floats: limits are moved inwards to what a float holds, so that nothing is allowed that was
    not, and values that no float holds are refused. `largest_step`: of multipleOf, in units of its last decimal."""
    for key in ("const", "enum"):
        if key in node:
            for value in _numbers_in(node[key]):
                if float(value) != value:
                    raise refused_number(value, f"{path}/{key}", "is none that floats hold")
    if is_whole(node):
        for key, side in ((LOWER[0], math.inf), (UPPER[0], -math.inf)):
            if isinstance(node.get(key), int) and abs(node[key]) > MAX_EXACT:
                node[key] = _inwards(node[key], side)
        if node.get(LOWER[0], -math.inf) > node.get(UPPER[0], math.inf) and abs(node[LOWER[0]]) > MAX_EXACT:
            raise refused_number(node[LOWER[0]], f"{path}/{UPPER[0]}", "lies above all that the limits allow and floats hold")
    step = node.get("multipleOf")
    if step is not None and _num_units(Decimal(repr(step))) > largest_step:
        raise refused_number(step, f"{path}/multipleOf", "has too many digits for a step")


def check_joined_steps(steps: Iterable[int | float], largest_step: int) -> None:
    """For an engine that joins steps of schemas which hold together, in integers of 32 bits: raises GrammarError where that may go
    wrong."""
    counted = Counter(Decimal(repr(step)) for step in steps)
    for one, other in itertools.combinations_with_replacement(sorted(counted), 2):
        if one == other and counted[one] == 1:
            continue
        unit = min(Decimal(1), *(Decimal(1).scaleb(int(step.normalize().as_tuple().exponent)) for step in (one, other)))
        a, b = int(one / unit), int(other / unit)
        if a * b >= 2**32 or _num_units(math.lcm(a, b) * unit) > largest_step:
            raise GrammarError(f"json_schema: the steps {one} and {other} of multipleOf {TOGETHER}", "json_schema")


def _num_units(step: Decimal) -> int:
    """A step in units of its last decimal."""
    _, _, exponent = step.normalize().as_tuple()
    return int(step.scaleb(max(-int(exponent), 0)))


def _inwards(value: int, side: float) -> int:
    """The nearest integer towards `side` that is a float."""
    near = float(value)
    past = near < value if side > 0 else near > value
    return int(math.nextafter(near, side) if past else near)
