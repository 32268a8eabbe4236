"""SentencePiece vocabularies in GGUF files cut text as `sentencepiece` itself does: a published vocabulary, its own ids."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from sglang.srt.scheduler.grammar.encoder import Encoder
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from tests.server.test_tokenizer import open_gguf, write_gguf

FACTS = Path(__file__).parent / "facts"
BOS, SPACE, OPEN, INST = 1, 28705, 733, 16289
"""<s>, one space, " [" and "INST" """


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    pieces = lzma.decompress((FACTS / "mistral-7b-v0.1.pieces.xz").read_bytes()).decode().split("\n")
    scores = [0.0] * 259 + [-1e9 if not piece.strip("▁") else float(259 - i) for i, piece in enumerate(pieces[259:], 259)]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    path = tmp_path_factory.mktemp("mistral") / "model.gguf"
    write_gguf(path, "llama", pieces, kinds, token_scores=scores, bos_token_id=BOS, eos_token_id=2, unk_token_id=0)
    return open_gguf(path)


def test_every_text_is_cut_as_sentencepiece_cuts_it(mistral: Tokenizer) -> None:
    facts = [json.loads(line) for line in (FACTS / "mistral-7b-v0.1.sentencepiece.jsonl").read_text().splitlines()]
    assert len(facts) > 400
    for text, ids in facts:
        assert mistral.encode_ordinary(text) == ids, text
        if not any(name in text for name in ("<s>", "</s>", "<unk>")):
            assert mistral.encode(text, add_special_tokens=False) == ids, text
        assert mistral.decode(ids) == text.replace("▁", " "), text


def test_a_space_is_put_first_and_after_every_special_token(mistral: Tokenizer) -> None:
    assert mistral.encode("<s>[INST] hi [/INST]")[:3] == [BOS, OPEN, INST]
    assert mistral.encode("[INST] hi [/INST]")[:3] == [BOS, OPEN, INST]
    assert mistral.encode(" Hello") == [BOS, SPACE, *mistral.encode("Hello", add_special_tokens=False)]
    once = mistral.encode("[INST] hi [/INST]", add_special_tokens=False)
    assert mistral.encode("<s>[INST] hi [/INST]</s>[INST] hi [/INST]") == [BOS, *once, 2, *once]
    assert mistral.encode("<s> x")[1] == SPACE


def test_names_of_tokens_are_no_pieces(mistral: Tokenizer) -> None:
    for text in ("<s>", "</s>", "<unk>", "<0x41>", "a</s>b<s>"):
        ids = mistral.encode_ordinary(text)
        assert min(ids) >= 259, "neither a special token nor a byte"
        assert mistral.decode(ids) == text


def test_text_that_a_grammar_forces_is_cut_as_inside_of_a_text(mistral: Tokenizer) -> None:
    """Its own space stands for the one that is put first."""
    encoder = Encoder(mistral.vocabulary)
    for text in ("Hello", "Hello world", "a  b"):
        assert encoder.encode(f" {text}") == mistral.encode(text, add_special_tokens=False)
    inside = encoder.encode("Hello")
    assert mistral.vocabulary.text_bytes(inside) == b"Hello"
