"""Numbers in schemas: only those that engines hold exactly.

Engines compute with 64-bit floats. Of a larger or longer number they follow another one than was written (an answer that is
not valid), and some constants stop the whole process. So such numbers are refused by their path, except limits that only say "as
far as 64 bits go": these become the largest exact integer, and what follows them is valid.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

from sglang.srt.errors import GrammarError

MAX_EXACT = 2**53 - 1
MAX_DIGITS = 15
"""decimal digits that a 64-bit float always holds"""
MAX_DECIMALS = 9
LOWER = ("minimum", "exclusiveMinimum")
MAPS = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})
"""whose keys are names, not keywords"""
UPPER = ("maximum", "exclusiveMaximum")


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
    if _is_number(node.get("multipleOf")):
        _check(node["multipleOf"], f"{path}/multipleOf")


def check_constants(schema: Any, path: str = "#") -> None:
    """Every `const` and `enum` in a schema, wherever a reference may lead. Raises GrammarError."""
    stack: list[tuple[Any, str, bool]] = [(schema, path, False)]
    while stack:
        part, at, is_map = stack.pop()
        if isinstance(part, list):
            stack += [(child, at, False) for child in part]
        if not isinstance(part, dict):
            continue
        for key, child in part.items():
            if key in ("const", "enum") and not is_map:
                _check_values(child, f"{at}/{key}")
            else:
                stack.append((child, f"{at}/{key}", key in MAPS and not is_map))


def check_lark(text: str) -> None:
    """The schemas in a Lark grammar. Raises GrammarError."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"%json\s*", text):
        try:
            schema, _ = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"ebnf: no JSON schema stands behind %json: {error}", "ebnf") from error
        check_constants(schema)


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
