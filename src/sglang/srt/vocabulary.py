"""The bytes of every token id, for grammars, stop strings and detokenizing.

Built once per process by `server/tokenization` and handed to the scheduler by `launch.py`, so that the scheduler needs no
tokenizer. Text is always the concatenation of token bytes; a character may span tokens, and special tokens have no bytes
when they are skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """`token_bytes[i]` is what id i adds to the text; for a special token it is the token's own name, e.g. b"<|im_end|>".

    `size` counts the ids that the tokenizer knows; a model's logits may have more columns (padding), never to be sampled
    under a grammar. `eos_token_ids` end generation unless `ignore_eos`.
    """

    token_bytes: tuple[bytes, ...]
    special_ids: frozenset[int]
    eos_token_ids: frozenset[int]
    bos_token_id: int | None = None
    tokenizer_json: str | None = None
    """The tokenizer in Hugging Face's JSON format when there is one: grammar engines may want it for canonical re-tokenizing."""

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    def text_bytes(self, ids: Iterable[int], skip_special: bool = True) -> bytes:
        """Bytes of a run of ids. Ids beyond the table add nothing."""
        table, special, size = self.token_bytes, self.special_ids, len(self.token_bytes)
        return b"".join(table[i] for i in ids if i < size and not (skip_special and i in special))


def ends_reasoning(ids: Sequence[int], ends: tuple[int, ...], lead: tuple[int, ...]) -> bool:
    """Whether the last of `ids` ends reasoning: it is one of `ends`, and with a `lead` that stands before it, nothing of `ends` between."""
    if not ids or ids[-1] not in ends:
        return False
    at, begin = len(ids) - 1 - len(lead), list(lead)
    while begin and at >= 0 and list(ids[at : at + len(lead)]) != begin:
        if ids[at] in ends:
            return False
        at -= 1
    return at >= 0


class SpecialSpacing:
    """Blanks between special tokens and what is beside them, for one sequence whose special tokens are shown."""

    __slots__ = ("_special", "_was_special", "gap")

    def __init__(self, special_ids: frozenset[int]) -> None:
        self._special = special_ids
        self._was_special: bool | None = None
        self.gap = b""

    def note(self, token_id: int) -> bytes:
        """The next token; what stands before it (`gap`)."""
        is_special = token_id in self._special
        self.gap = b" " if self._was_special is not None and (is_special or self._was_special) else b""
        self._was_special = is_special
        return self.gap
