"""Python's own parse tree of a regular expression, which defines its meaning here."""

from __future__ import annotations

import re
from typing import Any

from sglang.common.regex_tree import codes, parser
from sglang.srt.errors import GrammarError

__all__ = ["BEGINS", "ENDS", "codes", "parse"]

BEGINS = (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING)
ENDS = (codes.AT_END, codes.AT_END_STRING)


def parse(pattern: str) -> Any:
    """The tree: pairs of a code and its value; `state.flags` has the flags. Raises GrammarError."""
    try:
        return parser.parse(pattern)
    except (re.error, OverflowError) as error:
        raise GrammarError(f"regex: {error}", "regex") from error
    except RecursionError as error:
        raise GrammarError("regex: nested too deeply", "regex") from error
