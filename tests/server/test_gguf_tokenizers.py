"""The tokenizers that GGUF files name, against transformers' or against the tokenizer that they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.server.models import CORPUS
from tests.server.test_tokenizer import TEXTS, open_gguf, oracle, own_cache, write_byte_level_gguf, write_gguf  # noqa: F401  own_cache

pytest.importorskip("gguf")


def test_qwen35_reads_as_in_transformers(tmp_path: Path) -> None:
    write_byte_level_gguf(tmp_path / "m.gguf", "qwen35")
    ours, theirs = open_gguf(tmp_path / "m.gguf"), oracle(tmp_path / "m.gguf")
    for text in (*TEXTS, "कि हिन्दी", "x̌yz 12"):
        if normalizers.NFC().normalize_str(text) == text:
            assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False).ids, text


def pieces_of(path: Path, text: str) -> list[str]:
    tokenizer = open_gguf(path)
    split = tokenizer._core.pre_tokenizer.pre_tokenize_str(text)  # type: ignore[union-attr]
    return [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in split]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        (
            "deepseek-coder",
            "def f(x):\n  return 123, y",
            ["def", " f", "(", "x", "):", "\n", " ", " return", " ", "1", "2", "3", ",", " y"],
        ),
        ("deepseek-llm", "It costs 45 $!\n", ["It", " costs", " ", "4", "5", " $!", "\n"]),
        (
            "deepseek-v3",
            "It cost 12345 $!\n _abc  x",
            ["It", " cost", " ", "123", "45", " $!\n", " _", "abc", " ", " x"],
        ),
        ("glm4", "It's 12345  x", ["It", "'s", " ", "123", "45", " ", " x"]),
        ("falcon", "a 12345!? b", ["a", " ", "123", "45", "!?", " b"]),
    ],
)
def test_text_is_split_as_the_name_says(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    write_byte_level_gguf(tmp_path / "m.gguf", pre)
    found = pieces_of(tmp_path / "m.gguf", text)
    assert found == pieces
    ours = open_gguf(tmp_path / "m.gguf")
    for each in TEXTS:
        assert ours.decode(ours.encode(each)) == each


def test_gemma4_reads_as_in_transformers(tmp_path: Path) -> None:
    """Merges are in the file; no space is put first."""
    core = Core(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    state = json.loads(core.to_str())["model"]
    learned = sorted(state["vocab"], key=state["vocab"].__getitem__)
    tokens = [*learned[:4], *(f"<0x{byte:02X}>" for byte in range(256)), *learned[4:]]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in state["merges"]]
    write_gguf(
        tmp_path / "m.gguf", "gemma4", tokens, [3, 3, 3, 2] + [6] * 256 + [1] * (len(tokens) - 260), token_merges=merges,
        token_scores=[0.0] * len(tokens), bos_token_id=2, eos_token_id=1, unk_token_id=3, add_bos_token=True, add_space_prefix=False,
    )  # fmt: skip
    ours, theirs = open_gguf(tmp_path / "m.gguf"), oracle(tmp_path / "m.gguf")
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ids) == text


def write_unigram(path: Path, **extra: Any) -> Core:
    core = Core(models.Unigram())
    core.normalizer = normalizers.Replace("\u00a0", " ")
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    vocab = json.loads(core.to_str())["model"]["vocab"]
    tokens, scores = [token for token, _ in vocab], [score for _, score in vocab]
    write_gguf(
        path, "t5", tokens, [3, 3, 2] + [1] * (len(tokens) - 3), token_scores=scores, eos_token_id=1, unk_token_id=2, **extra
    )
    return core


def test_unigram_reads_as_in_transformers(tmp_path: Path) -> None:
    core = write_unigram(tmp_path / "m.gguf", add_bos_token=False)
    ours, theirs = open_gguf(tmp_path / "m.gguf"), oracle(tmp_path / "m.gguf")
    for text in TEXTS:
        if "\u00a0" in text or not text:
            continue
        ids = ours.encode(text)
        assert ids[-1] == 1, "end of sequence"
        assert ids[:-1] == core.encode(text, add_special_tokens=False).ids
        if "  " not in text and text == text.strip():
            assert ids[:-1] == theirs.encode(text, add_special_tokens=False).ids, text
    write_unigram(tmp_path / "x.gguf", remove_extra_whitespaces=True)
    other = open_gguf(tmp_path / "x.gguf")
    assert other.encode("  The   quick ") == other.encode("The quick")


@pytest.mark.parametrize("cased", [False, True])
def test_word_pieces_read_as_they_were_written(tmp_path: Path, cased: bool) -> None:
    core = Core(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    core.decoder = decoders.WordPiece()
    tokens = sorted(core.get_vocab(), key=core.get_vocab().__getitem__)
    spelled = [t if i < 5 else t[2:] if t.startswith("##") else f"▁{t}" for i, t in enumerate(tokens)]
    write_gguf(
        tmp_path / "m.gguf", "bert", spelled, [3] * 5 + [1] * (len(tokens) - 5),
        bos_token_id=2, eos_token_id=3, unk_token_id=1, sep_token_id=3, pad_token_id=0,
    )  # fmt: skip
    ours = open_gguf(tmp_path / "m.gguf")
    for text in TEXTS:
        if "[" not in text and "<|" not in text:
            assert ours.encode(text) == core.encode(text).ids, text
    e = core.encode("The dog", "Paris")
    assert ours.encode_pairs([("The dog", "Paris")]) == [(e.ids, e.type_ids.index(1))]
