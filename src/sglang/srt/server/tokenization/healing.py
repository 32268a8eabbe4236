"""Token healing: if a prompt ends inside a token of the full text, its last tokens are removed and the output begins with their text.

prompt "The link is http:"   ids  ... " http" ":"        a model rarely saw ":" followed by "//": "://" is one token
healed                       ids  ... " http"            output: a token that begins with ":", shown without it
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from sglang.srt.vocabulary import Vocabulary

MAX_BACK = 4
"""tokens taken back at most"""


class Healer:
    """Knows which texts begin longer tokens of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        special = vocabulary.special_ids
        self._sorted = sorted(token for i, token in enumerate(vocabulary.token_bytes) if token and i not in special)

    def heal(self, ids: Sequence[int]) -> tuple[Sequence[int], str]:
        """The prompt without the tokens that are taken back, and their text; at least one token stays. Nothing is taken back
        where no token could go on, at special tokens, and inside characters."""
        best = 0
        for count in range(1, min(MAX_BACK, len(ids) - 1) + 1):
            if ids[-count] in self._vocabulary.special_ids:
                break
            if self._goes_on(self._vocabulary.text_bytes(ids[-count:])):
                best = count
        tail = self._vocabulary.text_bytes(ids[len(ids) - best :])
        try:
            return ids[: len(ids) - best], tail.decode()
        except UnicodeDecodeError:
            return ids, ""

    def _goes_on(self, text: bytes) -> bool:
        """Whether some token begins with `text` and is longer."""
        at = bisect_left(self._sorted, text + b"\x00")
        return bool(text) and at < len(self._sorted) and self._sorted[at].startswith(text)
