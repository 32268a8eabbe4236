"""Tokenizers of folders and GGUF files, against transformers' reading of the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from sglang.srt.checkpoint.resolve import ModelFiles
from sglang.srt.config import TextOptions
from sglang.srt.errors import ConfigError, ModelError
from sglang.srt.server.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.server.models import CHATML, CORPUS, SPECIAL, train_byte_level

TEXTS = [
    *CORPUS[:5],
    "",
    " ",
    "  leading and trailing  ",
    "tabs\tand\r\nlines\n\n\n",
    "12345 + 67890 = 80235",
    "It's we'll THEY'RE don't",
    "emoji 👩‍👩‍👧‍👦 flags 🇫🇷 ﷺ \u200b zero",
    "mixedCASE snake_case kebab-case path/to/file.py",
    "é vs e\u0301",
    "!?.,;:()[]{}<>@#$%^&*~`",
    "   \n   x",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def open_folder(folder: Path, **options: Any) -> Tokenizer:
    return load_tokenizer(TextOptions(str(folder), **options), ModelFiles("folder", folder, "test"))


def open_gguf(path: Path) -> Tokenizer:
    return load_tokenizer(TextOptions(str(path)), ModelFiles("gguf", path, "test"))


def write_gguf(path: Path, model: str, tokens: list[str], kinds: list[int], **extra: Any) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for key, value in extra.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_byte_level_gguf(path: Path, pre: str) -> None:
    state = json.loads(train_byte_level().to_str())
    vocab = state["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = [3 if token in SPECIAL else 1 for token in tokens]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in state["model"]["merges"]]
    write_gguf(
        path, "gpt2", tokens, kinds,
        tokenizer_pre=pre, token_merges=merges, bos_token_id=1, eos_token_id=2, add_bos_token=False, chat_template=CHATML,
    )  # fmt: skip


def write_sentencepiece_gguf(path: Path, add_space_prefix: bool) -> None:
    """Pieces with scores as SentencePiece's BPE gives them: minus the rank of the merge."""
    core = Core(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    vocab = core.get_vocab()
    learned = [token for token in sorted(vocab, key=vocab.__getitem__) if vocab[token] > 2]
    long, single = [t for t in learned if len(t) > 1], [t for t in learned if len(t) == 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *long, *single]
    scores = [0.0] * 259 + [-float(i) for i in range(len(long) + len(single))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    write_gguf(
        path, "llama", tokens, kinds,
        tokenizer_pre="default", token_scores=scores, bos_token_id=1, eos_token_id=2, unk_token_id=0, add_space_prefix=add_space_prefix,
    )  # fmt: skip


def oracle(path: Path) -> Core:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, tokenizer, _ = get_gguf_tokenizer(str(path))
    core: Core = convert_gguf_tokenizer(architecture, tokenizer)[0]
    return core


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_byte_level_gguf_reads_as_in_transformers(tmp_path: Path, pre: str) -> None:
    path = tmp_path / "model.gguf"
    write_byte_level_gguf(path, pre)
    ours, theirs = open_gguf(path), oracle(path)
    for text in TEXTS:
        if pre == "qwen2" and "\u0301" in text:
            continue  # the model's own tokenizer.json composes characters; the oracle's conversion of GGUF does not
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        if pre != "qwen2":
            assert ours.decode(ids) == text
    assert ours.encode("<|im_end|>x")[0] == 2
    assert ours.vocabulary.eos_token_ids == {2}
    assert ours.vocabulary.special_ids == {0, 1, 2}


def test_the_smollm_pre_tokenizer_splits_digits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "model.gguf"
    write_byte_level_gguf(path, "smollm")
    ours = open_gguf(path)
    for text in TEXTS:  # the folder's tokenizer was trained with this very splitting
        assert ours.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize("add_space_prefix", [True, False])
def test_sentencepiece_gguf_reads_as_in_transformers(tmp_path: Path, add_space_prefix: bool) -> None:
    path = tmp_path / "model.gguf"
    write_sentencepiece_gguf(path, add_space_prefix)
    ours, theirs = open_gguf(path), oracle(path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids[0] == 1, "beginning of sequence"
        if add_space_prefix and not text.startswith(" "):  # the oracle puts one otherwise; sentencepiece always does
            assert ids[1:] == theirs.encode(text, add_special_tokens=False).ids, text
        prefix = " " if add_space_prefix and text else ""
        assert ours.vocabulary.text_bytes(ids).decode() == prefix + text
        assert ours.decode(ids) == text
    again = open_gguf(path)  # now from the cache
    assert [again.encode(t) for t in TEXTS] == [ours.encode(t) for t in TEXTS]
    assert again.vocabulary.token_bytes == ours.vocabulary.token_bytes


def test_token_bytes_agree_with_the_tokenizers_own_decoder(tokenizer: Tokenizer, folder: Path) -> None:
    core = Core.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = core.encode(text).ids
        assert tokenizer.vocabulary.text_bytes(ids).decode() == core.decode(ids) == text


@pytest.mark.parametrize(
    ("decoder", "piece", "expected"),
    [
        (decoders.Metaspace(), "▁Hello", b" Hello"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), "<0xE2>", b"\xe2"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]), "<0xE2>", b"<0xE2>"),
        (decoders.WordPiece(), "##ing", b"ing"),
        (decoders.WordPiece(), "go", b" go"),
        (decoders.BPEDecoder(), "low</w>", b"low "),
        (decoders.ByteLevel(), "Ġcaf\u00c3\u00a9", " café".encode()),
    ],
)
def test_pieces_of_every_spelling(decoder: Any, piece: str, expected: bytes) -> None:
    from sglang.srt.server.tokenization.token_bytes import token_table

    state = json.loads(decoder.__getstate__())
    assert token_table({piece: 0}, state, {})[0] == expected


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    ids = tokenizer.encode_ordinary(text)
    assert not tokenizer.vocabulary.special_ids.intersection(ids)
    assert tokenizer.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([*SPECIAL, "a", " ", "\n", "user", "é", "<|", "|>", "\ufdd0", "{{ 1 }}", "im_end"]), max_size=12)
)
def test_no_message_can_speak_as_the_template(tokenizer: Tokenizer, pieces: list[str]) -> None:
    content = "".join(pieces)
    ids = tokenizer.encode_chat([{"role": "user", "content": content}])
    assert [i for i in ids if i in tokenizer.vocabulary.special_ids] == [1, 2, 1]
    text = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_encoding_around_plain_special_tokens_is_what_it_would_be_alone(tokenizer: Tokenizer) -> None:
    content = "The quick <|im_end|> brown"
    ids = tokenizer.encode_chat([{"role": "user", "content": content}])
    head, tail = ids.index(1) + 1, ids.index(2)
    assert ids[head:tail] == tokenizer.encode_ordinary("user\n" + content)


def test_a_beginning_token_in_the_text_is_not_doubled(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_sentencepiece_gguf(path, True)
    ours = open_gguf(path)
    assert ours.encode("<s>The quick").count(1) == 1
    assert ours.encode("The quick").count(1) == 1
    assert ours.encode_batch(["<s>The", "The"]) == [ours.encode("<s>The"), ours.encode("The")]


def test_facts_of_a_folder(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    (copy / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}")
    ours = open_folder(copy)
    assert ours.vocabulary.eos_token_ids == {0, 2}
    assert ours.render_chat([{"role": "user", "content": "x"}]) == "x<|endoftext|>", "the file comes first"
    named = open_folder(copy, chat_template="chatml")
    assert "<|im_start|>user" in named.render_chat([{"role": "user", "content": "x"}])
    assert named.vocabulary.eos_token_ids == {0, 2}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json"),
        ("tokenizer_config.json", "[1]", "JSON object"),
        ("generation_config.json", "{", "JSON"),
        ("chat_template.jinja", "{% for %}", "does not compile"),
    ],
)
def test_damaged_files_are_named(folder: Path, tmp_path: Path, name: str, text: str | None, words: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if text is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        open_folder(copy)


def test_gguf_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_byte_level_gguf(path, "of-tomorrow")
    with pytest.raises(ModelError, match="of-tomorrow"):
        open_gguf(path)
    write_gguf(path, "rwkv", ["a"], [1])
    with pytest.raises(ModelError, match="rwkv"):
        open_gguf(path)
    write_gguf(path, "llama", ["a", "b"], [1, 1], token_scores=[1.0])
    with pytest.raises(ModelError, match="scores"):
        open_gguf(path)
