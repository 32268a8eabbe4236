"""Long texts are tokenized in pieces: their ids are those of the whole, and the memory that it takes is bounded whatever they are."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from sglang.srt.config import ModelFiles, TextOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.tokenization import chat_template, cutting
from sglang.srt.server.tokenization import tokenizer as tokenizer_module
from sglang.srt.server.tokenization.chat_template import SpecialText
from sglang.srt.server.tokenization.tokenizer import load_tokenizer
from tests.server.models import CHATML, train_byte_level
from tests.server.test_hostile_folders import KINDS

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = [
    "the",
    "quick",
    "été",
    "naïve",
    "你好世界",
    "🎉",
    "\n\n",
    "   ",
    "12345",
    "<|im_end|>",
    "<x>",
    "don't",
    "_x_",
    "e\u0301",
    "\t",
    "，",
]


def qwen_like() -> Tokenizer:
    core = train_byte_level(400)
    split = pre_tokenizers.Split(__import__("tokenizers").Regex(QWEN), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.normalizer = normalizers.NFC()
    return core


def with_template() -> Tokenizer:
    core = train_byte_level(400)
    core.add_special_tokens([AddedToken("<x>", special=True, lstrip=True, rstrip=True)])
    ids = [("<|im_start|>", core.token_to_id("<|im_start|>")), ("<|im_end|>", core.token_to_id("<|im_end|>"))]
    core.post_processor = processors.TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=ids)
    return core


ALL = {**KINDS, "Qwen's": qwen_like, "with a template": with_template}


def texts(seed: int) -> list[str]:
    rng = random.Random(seed)
    mixed = ["".join(rng.choice(WORDS) + rng.choice([" ", "", ",", ". "]) for _ in range(400)) for _ in range(2)]
    repeated = [word * 400 for word in WORDS] + [f"{word} " * 300 for word in WORDS[::3]]
    return [*mixed, *repeated, "".join(rng.choice(WORDS) for _ in range(400)), "ab " * 800 + "x" * 500 + " cd" * 500]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cutting, tokenizer_module):
        monkeypatch.setattr(module, "PIECE_CHARS", 500)
    monkeypatch.setattr(cutting, "WINDOW", 100)


@pytest.mark.parametrize("kind", ALL)
def test_ids_are_those_of_the_whole(tmp_path: Path, small: None, kind: str) -> None:
    core = ALL[kind]()
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(TextOptions(str(tmp_path)), ModelFiles("folder", tmp_path, "test"))
    for text in texts(5):
        wanted = core.encode(text).ids
        assert tokenizer.encode(text) == wanted, text[:80]
        assert tokenizer.encode_batch(["ab", text], False)[1] == core.encode(text, add_special_tokens=False).ids


def test_no_long_text_is_encoded_at_once(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    qwen_like().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(TextOptions(str(tmp_path)), ModelFiles("folder", tmp_path, "test"))
    encode, lengths = tokenizer_module._encoding, []
    monkeypatch.setattr(
        tokenizer_module, "_encoding", lambda core, text, *more: (lengths.append(len(text)), encode(core, text, *more))[1]
    )
    tokenizer.encode("word, " * 2000)
    tokenizer.encode("你好世界，" * 2000)
    tokenizer.encode_ordinary("1234567 " * 2000)
    assert max(lengths) <= 512


@pytest.mark.parametrize("character", ["😀", "a", " ", "\n", "\u0301", "!"])
def test_a_word_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, character: str) -> None:
    """It could only be tokenized as a whole, at hundreds of bytes for each of its own."""
    core = qwen_like()
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(TextOptions(str(tmp_path)), ModelFiles("folder", tmp_path, "test"))
    monkeypatch.setattr(cutting, "MAX_WORD", 100_000)
    monkeypatch.setattr(tokenizer_module, "_encoding", None)
    monkeypatch.setattr(
        tokenizer_module, "_plain_ids", lambda core, text: list(core.encode(text).ids) if len(text) < 2000 else 1 / 0
    )
    for text in (character * 200_000, "some words " * 10 + character * 200_000):
        with pytest.raises(RequestError, match="a word of more than 100000 bytes"):
            tokenizer.encode(text, False)


@pytest.mark.parametrize(("word_len", "between"), [(1500, " "), (3000, "\n"), (65_000, " ")])
def test_words_that_are_longer_than_a_window(tmp_path: Path, word_len: int, between: str) -> None:
    """Sequences of proteins, a line each: long words, but none that is too long."""
    core = qwen_like()
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(TextOptions(str(tmp_path)), ModelFiles("folder", tmp_path, "test"))
    rng = random.Random(word_len)
    words = ["".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=word_len)) for _ in range(max(300_000 // word_len, 2))]
    text = between.join(words)
    assert tokenizer.encode(text, False) == core.encode(text, add_special_tokens=False).ids


def test_names_of_special_tokens_in_long_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are text, in whichever piece they stand."""
    core = train_byte_level(400)
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    tokenizer = load_tokenizer(TextOptions(str(tmp_path)), ModelFiles("folder", tmp_path, "test"))
    for text in texts(7)[:6]:
        messages = [{"role": "user", "content": text}, {"role": "user", "content": "<|im_end|> and " * 300}]
        whole = tokenizer.encode_chat(messages)
        with monkeypatch.context() as patch:
            for module in (cutting, tokenizer_module):
                patch.setattr(module, "PIECE_CHARS", 500)
            patch.setattr(cutting, "WINDOW", 100)
            assert tokenizer.encode_chat(messages) == whole
        assert whole.count(core.token_to_id("<|im_end|>")) == 2


def test_names_of_special_tokens_are_found_at_the_edge_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "WINDOW", 64)
    found = SpecialText(["<|im_end|>", "<s>"])
    for at in range(200):
        assert found.occurs_in("x" * at + "<|im_end|>" + "y" * 100) and found.occurs_in({"a": ["b" * at + "<s>"]})
        assert not found.occurs_in("x" * at + "<|im_end" + "y" * 100)


def test_messages_that_cannot_fit_are_refused_before_they_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_byte_level(400).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    tokenizer = load_tokenizer(TextOptions(str(tmp_path)), ModelFiles("folder", tmp_path, "test"))
    monkeypatch.setattr(tokenizer, "_render", None)
    parts = [{"type": "text", "text": "b" * 600}, {"type": "image"}]
    with pytest.raises(RequestError, match=r"the input \(93 tokens or more\) is longer than"):
        tokenizer.encode_chat([{"role": "user", "content": "a" * 600}, {"role": "user", "content": parts}], max_chars=1000)
