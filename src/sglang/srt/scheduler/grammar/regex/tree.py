"""Python's own parse tree of a regular expression, which defines its meaning here."""

from __future__ import annotations

import re
import sys
from typing import Any

from sglang.srt.errors import GrammarError

if sys.version_info >= (3, 11):
    from re import _constants as codes
    from re import _parser as parser
else:
    import sre_constants as codes
    import sre_parse as parser

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
