"""The bytes of every token.

Three spellings are in use. Byte-level BPE (GPT-2) writes each byte as one printable character. SentencePiece writes a space
as U+2581 and a byte without its own piece as <0xXX>. WordPiece marks what continues a word. The decoder of a
tokenizer, in the JSON format of Hugging Face's `tokenizers`, shows which one it uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sglang.srt.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SEPARATOR = "\uffff"
"""a noncharacter, which no token contains"""

PieceBytes = Callable[[str], bytes]


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE (source: GPT-2's encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in alphabet)
    alphabet.update({byte: chr(256 + i) for i, byte in enumerate(hidden)})
    return [alphabet[byte] for byte in range(256)]


def _decoder_steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for inner in decoder["decoders"] for step in _decoder_steps(inner)]
    return [decoder]


def is_byte_level(decoder: dict[str, Any] | None) -> bool:
    return any(step["type"] == "ByteLevel" for step in _decoder_steps(decoder))


def drops_leading_space(decoder: dict[str, Any] | None) -> bool:
    """Whether a whole text loses its first space, which the tokenizer had put there."""
    for step in _decoder_steps(decoder):
        if step["type"] == "Strip" and step.get("content") == " " and step.get("start", 0) > 0:
            return True
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return True
        if step["type"] == "WordPiece":
            return True
    return False


def piece_to_bytes(decoder: dict[str, Any] | None) -> PieceBytes:
    """A function from a token's spelling to its bytes, for tokenizers that are not byte-level."""
    replacements: list[tuple[str, str]] = []
    byte_fallback = False
    continuation: str | None = None
    for step in _decoder_steps(decoder):
        kind = step["type"]
        if kind == "Replace" and "String" in step["pattern"]:
            replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace":
            replacements.append((step.get("replacement", "▁"), " "))
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind == "WordPiece":
            continuation = step.get("prefix", "##")
        elif kind == "BPEDecoder":
            replacements.append((step.get("suffix", "</w>"), " "))
        elif kind not in ("Fuse", "Strip"):
            raise ModelError(f"the tokenizer's decoder has a step {kind!r} that is not supported")

    def convert(piece: str) -> bytes:
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if continuation is not None:
            piece = piece[len(continuation) :] if piece.startswith(continuation) else " " + piece
        for old, new in replacements:
            piece = piece.replace(old, new)
        return piece.encode()

    return convert


def token_table(vocab: dict[str, int], decoder: dict[str, Any] | None, added: dict[int, str]) -> tuple[bytes, ...]:
    """Bytes by id. `added` tokens are spelled as they are; an id that no token has is empty."""
    pieces = [""] * (max((*vocab.values(), *added), default=-1) + 1)
    for piece, token_id in vocab.items():
        pieces[token_id] = piece
    table = _byte_level_table(pieces) if is_byte_level(decoder) else list(map(piece_to_bytes(decoder), pieces))
    for token_id, text in added.items():
        table[token_id] = text.encode()
    return tuple(table)


def _byte_level_table(pieces: list[str]) -> list[bytes]:
    """All pieces in one pass: a vocabulary has 50,000 to 260,000 of them."""
    mapping = {ord(char): chr(byte) for byte, char in enumerate(byte_alphabet())}
    translated = _SEPARATOR.join(pieces).translate(mapping).split(_SEPARATOR)
    try:
        return [piece.encode("latin-1") for piece in translated]
    except UnicodeEncodeError:  # a piece outside the alphabet: a name, spelled as it is
        inside = set(mapping)
        return [
            new.encode("latin-1") if inside.issuperset(map(ord, old)) else old.encode()
            for old, new in zip(pieces, translated, strict=True)
        ]
