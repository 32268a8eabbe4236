"""Folders without a tokenizer.json: SentencePiece models, tekken.json and ranks of tiktoken, against the libraries they are for."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.errors import ModelError
from sglang.srt.server.tokenization.gguf_tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT
from sglang.srt.server.tokenization.token_bytes import byte_alphabet
from sglang.srt.server.tokenization.tokenizer import Tokenizer
from tests.server.models import train_byte_level
from tests.server.test_gguf_tokenizers import write_unigram
from tests.server.test_sentencepiece import BOS, FACTS
from tests.server.test_tokenizer import TEXTS, open_folder, own_cache  # noqa: F401  a cache of its own

# --- SentencePiece ------------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, Any]) -> bytes:
    """A protocol buffer."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def spm(pieces: list[str], scores: list[float], kinds: list[int], trainer: bytes, normalizer: bytes) -> bytes:
    listed = [(1, message((1, p.encode()), (2, s), (3, k))) for p, s, k in zip(pieces, scores, kinds, strict=True)]
    return message(*listed, (2, trainer), (3, normalizer))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import lzma

    pieces = lzma.decompress((FACTS / "mistral-7b-v0.1.pieces.xz").read_bytes()).decode().split("\n")
    scores = [0.0] * 259 + [-1e9 if not piece.strip("▁") else float(259 - i) for i, piece in enumerate(pieces[259:], 259)]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    folder = tmp_path_factory.mktemp("mistral")
    data = spm(pieces, scores, kinds, message((3, 2), (35, 1)), message((1, b"identity"), (3, 1), (4, 0)))
    (folder / "tokenizer.model").write_bytes(data)
    return folder


def test_a_sentencepiece_model_cuts_as_sentencepiece_does(mistral: Path) -> None:
    tokenizer = open_folder(mistral)
    for line in (FACTS / "mistral-7b-v0.1.sentencepiece.jsonl").read_text().splitlines():
        text, ids = json.loads(line)
        assert tokenizer.encode_ordinary(text) == ids, text
        assert tokenizer.decode(ids) == text.replace("▁", " "), text
    assert tokenizer.encode("x")[0] == BOS
    again = open_folder(mistral)  # now from the cache
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_tokens_beside_the_model(mistral: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").symlink_to(mistral / "tokenizer.model")
    added = {
        "1": {"content": "<s>", "special": True},
        "32000": {"content": "<|im_start|>", "special": True},
        "32001": {"content": "<tool>"},
    }
    config = {"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_folder(tmp_path)
    ids = tokenizer.encode("<|im_start|>a<tool>")
    assert (ids[0], ids[-1], BOS in ids) == (32000, 32001, False)
    assert tokenizer.vocabulary.eos_token_ids == {2}
    config["added_tokens_decoder"] = {"32005": {"content": "<far>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'<far>' has the id 32005, and tokenizer\.model makes it 32000"):
        open_folder(tmp_path)


@pytest.mark.parametrize("classes", [["MistralModel"], ["MistralForCausalLM"]])
@pytest.mark.parametrize("as_json", [False, True])
def test_texts_that_are_embedded_end_as_the_folder_says(
    mistral: Path, tmp_path: Path, classes: list[str], as_json: bool
) -> None:
    """As e5-mistral is published. A model that generates goes on behind a prompt."""
    if as_json:
        (tmp_path / "tokenizer.json").write_text(open_folder(mistral).vocabulary.tokenizer_json)
    else:
        (tmp_path / "tokenizer.model").symlink_to(mistral / "tokenizer.model")
    config = {"add_eos_token": True, "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": classes}))
    tokenizer, plain = open_folder(tmp_path), open_folder(mistral)
    ends = [2] if classes == ["MistralModel"] else []
    for text in ("Hello", "a b c", ""):
        assert tokenizer.encode(text) == [*plain.encode(text), *ends], text
    assert tokenizer.encode_batch(["Hello", "x"]) == [[*plain.encode(text), *ends] for text in ("Hello", "x")]
    assert tokenizer.encode("Hello", add_special_tokens=False) == plain.encode("Hello", add_special_tokens=False)


def test_a_unigram_model(tmp_path: Path) -> None:
    core = write_unigram(tmp_path / "m.gguf")
    vocab = json.loads(core.to_str())["model"]["vocab"]
    trainer, normalizer = message((3, 1), (40, 2), (41, 0), (42, 1)), message((3, 1), (4, 0))
    data = spm([p for p, _ in vocab], [float(s) for _, s in vocab], [3, 3, 2] + [1] * (len(vocab) - 3), trainer, normalizer)
    (tmp_path / "tokenizer.model").write_bytes(data)
    tokenizer = open_folder(tmp_path)
    for text in TEXTS:
        if text and "\u00a0" not in text:
            assert tokenizer.encode(text) == [*core.encode(text, add_special_tokens=False).ids, 1], text


# --- ranks --------------------------------------------------------------------------------------------------------------------


def ranks() -> dict[bytes, int]:
    """A small vocabulary in the order of its merges."""
    state = json.loads(train_byte_level(700).to_str())["model"]
    back = {char: byte for byte, char in enumerate(byte_alphabet())}
    pieces = [piece for piece in sorted(state["vocab"], key=state["vocab"].__getitem__) if not piece.startswith("<|")]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(back[char] for char in piece) for piece in pieces if len(piece) > 1]
    return {token: rank for rank, token in enumerate(tokens)}


def check(tokenizer: Tokenizer, split: str, names: dict[str, int], first: int = 0) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    oracle = tiktoken.Encoding("test", pat_str=split, mergeable_ranks=ranks(), special_tokens={})
    for text in [*TEXTS, " ".join(TEXTS)]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == [first + i for i in oracle.encode(text)], text
        assert tokenizer.decode(ids) == text
    for name, token_id in names.items():
        assert tokenizer.encode(f"a{name}b", add_special_tokens=False)[1] == token_id
        assert token_id not in tokenizer.encode_ordinary(f"a{name}b")


def write_ranks(path: Path) -> None:
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks().items()]
    path.write_bytes(b"\n".join(lines) + b"\n")


def test_qwens_ranks(tmp_path: Path) -> None:
    write_ranks(tmp_path / "qwen.tiktoken")
    (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
    n = len(ranks())
    check(open_folder(tmp_path), QWEN2_SPLIT, {"<|endoftext|>": n, "<|im_end|>": n + 2, "<|extra_0|>": n + 3})
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(ModelError, match="not known for the model_type 'other'"):
        open_folder(tmp_path)


def test_llamas_ranks(tmp_path: Path) -> None:
    """In a file that is named as SentencePiece's."""
    write_ranks(tmp_path / "tokenizer.model")
    n = len(ranks())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    added = {str(n): {"content": "<|begin_of_text|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    check(open_folder(tmp_path), LLAMA3_SPLIT, {"<|begin_of_text|>": n})


def tekken(**changes: Any) -> dict[str, Any]:
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None} for token, rank in ranks().items()
    ]
    config = {
        "pattern": LLAMA3_SPLIT,
        "num_vocab_tokens": 10**5,
        "default_vocab_size": len(vocab) + 10,
        "default_num_special_tokens": 10,
    }
    special = [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(("<unk>", "<s>", "</s>", "[INST]"))]
    return {"config": {**config, "version": "v3"}, "vocab": vocab, "special_tokens": special, **changes}


def test_mistrals_tekken(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken()))
    tokenizer = open_folder(tmp_path)
    check(tokenizer, LLAMA3_SPLIT, {"<s>": 1, "[INST]": 3, "<SPECIAL_9>": 9}, first=10)
    assert tokenizer.vocabulary.size == len(ranks()) + 10
    beyond = tekken()
    beyond["vocab"].append({"rank": len(ranks()), "token_bytes": "AAAAAAAA", "token_str": None})
    (tmp_path / "tekken.json").write_text(json.dumps(beyond))
    assert open_folder(tmp_path).vocabulary.size == len(ranks()) + 10, "ranks beyond the vocabulary's size are left out"


# --- damaged files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tekken.json", b"{"),
        ("tekken.json", b'{"config": 3}'),
        ("tekken.json", json.dumps(tekken(vocab=[{"rank": 0, "token_bytes": "AA=="}])).encode()),
        ("tekken.json", json.dumps(tekken(special_tokens=[{"rank": -1, "token_str": "x"}])).encode()),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x7f"),
        ("tokenizer.model", message((1, 5))),
        ("tokenizer.model", spm(["\u2581a"], [0.0], [1], message((3, 4)), b"")),
        ("tokenizer.model", message((1, message((1, b"\xff"))))),
        ("qwen.tiktoken", b"IQ== 0\nIg== 5\n"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
    with pytest.raises(ModelError, match=name):
        open_folder(tmp_path)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_an_error_or_a_tokenizer(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(ModelError, match=folder.name):
        open_folder(folder)


def test_a_folder_without_any(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json, tokenizer\.model, tekken\.json or"):
        open_folder(tmp_path)
