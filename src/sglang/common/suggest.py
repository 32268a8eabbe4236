""" "Did you mean": finds the known name that is nearest to an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MAX_NAME_LEN = 200
"""characters of a name that are compared: clients may send names of any length"""


def nearest(name: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The one of `known` that is most like `name`, large letters being small ones; None when none is. `cutoff`: 0 (anything) to 1
    (equal)."""
    by_small = {other.lower(): other for other in sorted(known, reverse=True)}
    close = difflib.get_close_matches(name[:MAX_NAME_LEN].lower(), by_small, n=1, cutoff=cutoff)
    return by_small[close[0]] if close else None


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of an error's sentence: "; did you mean 'x'?", or nothing."""
    close = nearest(name, known)
    return "" if close is None else f"; did you mean {close!r}?"
