"""Common prefixes of token sequences: the position from which the tokens of prompt + choice are scored.

    prompt            ... a  ␣
    prompt + choice   ... a  ␣calc  ulator        first difference: at "␣", which every choice replaces

The tokens of prompt + choice need not begin with those of the prompt: tokenizers merge across the border. Scoring therefore begins
at the first position where any prompt + choice differs from the prompt's own tokens, so that every choice is scored after the same
prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def common_len(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common beginning. Compares slices: fast for lists of many thousand ids."""
    same, most = 0, min(len(a), len(b))
    while same < most:
        middle = (same + most + 1) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same


def first_difference(prompt: Sequence[int], sequences: Iterable[Sequence[int]]) -> int:
    """The smallest index at which one of `sequences` leaves `prompt`; len(prompt) if none does."""
    return min((common_len(prompt, sequence) for sequence in sequences), default=len(prompt))
