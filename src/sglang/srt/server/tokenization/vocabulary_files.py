"""Tokenizers of folders without a tokenizer.json: the vocabulary as the program wrote it that made it.

    tokenizer.model    SentencePiece (a protocol buffer), or ranks as below
    tekken.json        Mistral's: ranks of bytes, special tokens before them
    *.tiktoken         a line "base64 rank" for each token; how text is split, the model type says

Sources: sentencepiece_model.proto, mistral-common, tiktoken. A vocabulary of SentencePiece is spelled as GGUF metadata
and built as those are.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError
from sglang.srt.server.tokenization.gguf_tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT, build_gguf_tokenizer
from sglang.srt.server.tokenization.token_bytes import byte_alphabet

MAX_RANKS, MAX_TOKEN_BYTES = 1 << 20, 1 << 12
_SPLITS = {"qwen": QWEN2_SPLIT, "llama": LLAMA3_SPLIT}
"""model_type -> how text is split before it is merged"""
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_KINDS = {1: "t5", 2: "llama"}
"""SentencePiece's model types that are read -> what GGUF files call them"""

Ranks = dict[bytes, int]


def find_vocabulary(folder: Path) -> Path | None:
    """The file of a vocabulary, if there is one of a kind that is read."""
    names = [folder / "tekken.json", folder / "tokenizer.model", *sorted(folder.glob("*.tiktoken"))]
    return next((path for path in names if path.is_file()), None)


def read_vocabulary(path: Path, config: Mapping[str, Any], model: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a file. `config`: of tokenizer_config.json, `model`: of config.json. Raises ModelError naming the file."""
    if path.name == "tekken.json":
        return _tekken(path)
    data = path.read_bytes()
    ranks = _read_ranks(data)
    return _sentencepiece(path, data, config) if ranks is None else _by_ranks(path, ranks, config, model)


# --- SentencePiece ------------------------------------------------------------------------------------------------------------


def _fields(data: bytes, where: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message: int, bytes, or the four bytes of a float as a float."""
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            kind = key & 7
            if kind == 0:
                value, at = _varint(data, at)
                yield key >> 3, value
                continue
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if at + size > len(data):
                raise ValueError
            part = data[at : at + size]
            yield key >> 3, struct.unpack("<f", part)[0] if kind == 5 else part
            at += size
    except (IndexError, KeyError, ValueError) as error:
        raise ModelError(f"{where} is damaged: it is neither a SentencePiece model nor a list of ranks") from error


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError


def _sentencepiece(path: Path, data: bytes, config: Mapping[str, Any]) -> Tokenizer:
    tokens, scores, kinds = list[str](), list[float](), list[int]()
    trainer, normalizer = dict[int, Any](), dict[int, Any]()
    for number, value in _fields(data, path):
        if not isinstance(value, bytes):
            raise ModelError(f"{path} is damaged: it is neither a SentencePiece model nor a list of ranks")
        if number == 1:
            piece = dict(_fields(value, path))
            tokens.append(_text(piece.get(1, b""), path))
            scores.append(float(piece.get(2, 0.0)))
            kinds.append(int(piece.get(3, 1)))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(_fields(value, path))
    kind = _KINDS.get(trainer.get(3, 1))
    if kind is None or not tokens:
        raise ModelError(f"{path} is not a SentencePiece model of the kinds that are read (BPE and Unigram)")
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)),
        "tokenizer.ggml.remove_extra_whitespaces": bool(normalizer.get(4, 1)),
        "tokenizer.ggml.precompiled_charsmap": list(normalizer.get(2, b"")),
    }
    for name, field, default in (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2)):
        token_id = trainer.get(field, default)
        metadata[f"tokenizer.ggml.{name}_token_id"] = token_id if token_id < len(tokens) else None
    if isinstance(config.get("add_bos_token"), bool):
        metadata["tokenizer.ggml.add_bos_token"] = config["add_bos_token"]
    core = build_gguf_tokenizer({key: value for key, value in metadata.items() if value is not None})
    if kind == "llama":
        core.normalizer = normalizers.Sequence([*_cleaning(metadata), core.normalizer])
    _add_tokens(path, core, _listed(path, config))
    return core


def _cleaning(metadata: Mapping[str, Any]) -> list[Any]:
    """The normalization of a BPE model before spaces are marked."""
    steps: list[Any] = []
    if table := bytes(metadata["tokenizer.ggml.precompiled_charsmap"]):
        steps.append(normalizers.Precompiled(table))
    if metadata["tokenizer.ggml.remove_extra_whitespaces"]:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _text(data: Any, where: Path) -> str:
    try:
        return str(data, "utf-8")
    except (TypeError, UnicodeDecodeError) as error:
        raise ModelError(f"{where} is damaged: it has a piece that is no text") from error


# --- ranks of bytes -----------------------------------------------------------------------------------------------------------


def _read_ranks(data: bytes) -> Ranks | None:
    """None for a file of another kind."""
    ranks: Ranks = {}
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2 or not parts[1].isdigit() or len(ranks) >= MAX_RANKS or len(parts[0]) > MAX_TOKEN_BYTES:
            return None
        try:
            ranks[base64.b64decode(parts[0], validate=True)] = int(parts[1])
        except (binascii.Error, ValueError):
            return None
    return ranks or None


def _by_ranks(path: Path, ranks: Ranks, config: Mapping[str, Any], model: Mapping[str, Any]) -> Tokenizer:
    kind = model.get("model_type")
    split = _SPLITS.get(kind) if isinstance(kind, str) else None
    if split is None:
        raise ModelError(
            f"{path} does not say how text is split, and that is not known for the model_type {shown(kind)}: give a folder with a "
            "tokenizer.json with --tokenizer-path"
        )
    core = _merging(path, ranks, split)
    special = _listed(path, config)
    if not special and kind == "qwen":
        special = {max(ranks.values()) + 1 + i: (name, True) for i, name in enumerate(_QWEN_SPECIAL)}
    _add_tokens(path, core, special)
    return core


def _tekken(path: Path) -> Tokenizer:
    try:
        raw = json.loads(path.read_bytes())
        config = raw["config"]
        split, size, num_special = config["pattern"], config["default_vocab_size"], config["default_num_special_tokens"]
        tokens = [(base64.b64decode(entry["token_bytes"], validate=True), entry["rank"]) for entry in raw["vocab"]]
        named = {entry["rank"]: entry["token_str"] for entry in raw.get("special_tokens") or []}
        numbers = [size, num_special, *named, *(rank for _, rank in tokens)]
        sound = all(type(n) is int and 0 <= n < MAX_RANKS for n in numbers) and isinstance(split, str) and num_special <= size
        if not sound or not all(isinstance(name, str) for name in named.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged, or of a version that is not known") from error
    names = [named.get(i, f"<SPECIAL_{i}>") for i in range(num_special)]
    core = _merging(path, {token: rank for token, rank in tokens if rank < size - num_special}, split, names)
    core.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return core


def _merging(path: Path, ranks: Ranks, split: str, names: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE whose merges are what the ranks imply. `names` have the first ids, before the ranks."""
    alphabet = byte_alphabet()
    spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ModelError(f"{path} is damaged: ranks must count from 0, and every byte must have one")
    merges: list[tuple[int, int, int, str, str]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], spelled[left], spelled[right]))
    merges.sort()
    vocab = {spelled[token]: len(names) + rank for token, rank in ranks.items()}
    vocab.update((name, i) for i, name in enumerate(names))
    if len(vocab) != len(ranks) + len(names):
        raise ModelError(f"{path} is damaged: it has a token twice")
    core = Tokenizer(models.BPE(vocab=vocab, merges=[merge[3:] for merge in merges], ignore_merges=True))
    cut_text = pre_tokenizers.Split(Regex(split), behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([cut_text, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    return core


# --- tokens beside the vocabulary -----------------------------------------------------------------------------------------------


def _listed(path: Path, config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Tokens listed in tokenizer_config.json: id -> name, and whether it is special."""
    listed = config.get("added_tokens_decoder") or {}
    try:
        return {int(i): (str(entry["content"]), bool(entry.get("special"))) for i, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path.parent / 'tokenizer_config.json'}: added_tokens_decoder must be tokens by id") from error


def _add_tokens(path: Path, core: Tokenizer, tokens: Mapping[int, tuple[str, bool]]) -> None:
    for token_id, (name, special) in sorted(tokens.items()):
        added = AddedToken(name, normalized=False, special=special)
        (core.add_special_tokens if special else core.add_tokens)([added])
        if core.token_to_id(name) != token_id:
            raise ModelError(
                f"{path.parent / 'tokenizer_config.json'}: the added token {name[:80]!r} has the id {token_id}, and {path.name} makes it "
                f"{core.token_to_id(name)}"
            )
