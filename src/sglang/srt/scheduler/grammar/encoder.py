"""Encodes text that a grammar forces: with the tokenizer's own tokens if it is available, else by longest match."""

from __future__ import annotations

from tokenizers import Tokenizer

from sglang.srt.vocabulary import Vocabulary

MAX_TOKEN_BYTES = 64
"""Longest token that the longest match tries."""


class LongestMatch:
    """Takes the longest token each time. The attributes are what llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = list(vocabulary.token_bytes)
        self.special_token_ids = sorted(vocabulary.special_ids | vocabulary.eos_token_ids)
        self.eos_token_id = min(vocabulary.eos_token_ids)
        self.bos_token_id = vocabulary.bos_token_id
        special = set(self.special_token_ids)
        self._ids: dict[bytes, int] = {}
        for i, token in enumerate(self.tokens):
            if i not in special and token:
                self._ids.setdefault(token, i)

    def __call__(self, text: bytes | str) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        ids, at = [], 0
        while at < len(data):
            for end in range(min(at + MAX_TOKEN_BYTES, len(data)), at, -1):
                token_id = self._ids.get(data[at:end])
                if token_id is not None:
                    ids.append(token_id)
                    at = end
                    break
            else:
                break  # no token covers this byte
        return ids


class Encoder:
    """Canonical tokens of pieces of text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._longest = LongestMatch(vocabulary)
        self._tokenizer: Tokenizer | None = None
        if vocabulary.tokenizer_json is not None:
            try:
                self._tokenizer = Tokenizer.from_str(vocabulary.tokenizer_json)
            except Exception as error:  # noqa: BLE001  the crate raises Exception itself
                if type(error) is not Exception:
                    raise

    def encode(self, text: str) -> list[int]:
        """Tokens whose bytes are exactly `text`; empty when there are none."""
        if self._tokenizer is not None:
            for begin in (text, text.removeprefix(" ")):  # the space that SentencePiece puts first may be the text's own
                ids: list[int] = self._tokenizer.encode(begin, add_special_tokens=False).ids
                if self._is_exact(ids, text):
                    return ids
        ids = self._longest(text)
        return ids if self._is_exact(ids, text) else []

    def _is_exact(self, ids: list[int], text: str) -> bool:
        """A tokenizer may normalize, or begin every text with a space."""
        special, table = self._vocabulary.special_ids, self._vocabulary.token_bytes
        return not special.intersection(ids) and b"".join(table[i] for i in ids) == text.encode()
