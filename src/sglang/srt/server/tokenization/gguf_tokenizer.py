"""A `tokenizers` Tokenizer from the metadata of a GGUF file.

The metadata holds the pieces, their kinds, and either merges (model "gpt2": byte-level BPE) or scores (model "llama":
SentencePiece BPE). How text is split before merging is only named (`tokenizer.ggml.pre`); the patterns behind the names are
those of the models' own tokenizer.json files. Sources: the GGUF specification and its key `tokenizer.ggml.*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError

MAX_CUTS = 1 << 28
"""squares of the lengths of all tokens: real vocabularies have some ten million"""
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
"""values of tokenizer.ggml.token_type"""
_NEVER_IN_TEXT = (_UNKNOWN, _CONTROL, _BYTE)
"""kinds of tokens that no text is cut into by its letters"""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
_GPT2_SPLITS = frozenset({"default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es"})
_DIGIT_SPLITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "granite-docling", "exaone"})
"""single digits, then GPT-2's pattern"""
_WHOLE_PIECES = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken", "smaug-bpe"})
"""a split that is a piece as it stands is not merged up from bytes"""


def build_gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Raises ModelError if the metadata lacks a tokenizer or names one that is not supported."""
    model = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError("the GGUF file has no tokenizer in its metadata; give one with --tokenizer-path")
    if model == "gpt2":
        core = _byte_level(metadata, tokens)
    elif model == "llama":
        core = _sentencepiece(metadata, tokens)
    else:
        raise ModelError(f"the GGUF file's tokenizer model {shown(model)} is not supported (gpt2 and llama are)")
    _add_named_tokens(core, metadata, tokens)
    _add_bos(core, metadata, tokens)
    return core


def _values(metadata: Mapping[str, Any], key: str) -> list[Any]:
    """An array of the metadata as a list; empty when there is none. Arrays of numbers come as NumPy arrays."""
    value = metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, np.ndarray)):
        raise ModelError(f"the GGUF file's {key} must be a list, got {shown(value)}")
    return value if isinstance(value, list) else list(value.tolist())


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = _values(metadata, key)
    if not all(isinstance(text, str) for text in found):
        raise ModelError(f"the GGUF file's {key} must be texts, got {shown(found)}")
    return found


def _token_id(metadata: Mapping[str, Any], name: str, tokens: list[str]) -> int | None:
    """The id under tokenizer.ggml.`name`, None if there is none below the number of tokens."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is not None and type(value) is not int:
        raise ModelError(f"the GGUF file's tokenizer.ggml.{name} must be a token id, got {shown(value)}")
    return value if value is not None and 0 <= value < len(tokens) else None


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str):
        raise ModelError(f"the GGUF file's tokenizer.ggml.pre must be a name, got {shown(pre)}")
    cut = [merge.partition(" ") for merge in _strings(metadata, "tokenizer.ggml.merges")]
    if not all(space for _, space, _ in cut):
        raise ModelError("the GGUF file's tokenizer.ggml.merges hold one that is not two pieces")
    merges = [(left, right) for left, _, right in cut]
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        core = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_PIECES))
    except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception
        raise ModelError(f"the GGUF file's merges do not fit its tokens: {str(error)[:200]}") from error
    core.pre_tokenizer = _split(pre)
    if _SPLITS.get(pre) is _QWEN2:
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    return core


def _split(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _DIGIT_SPLITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if pre in _GPT2_SPLITS:
        return gpt2
    raise ModelError(
        f"the GGUF file's pre-tokenizer {shown(pre)} is not known; give the model's own tokenizer with --tokenizer-path"
    )


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
    if gemma:  # runs of spaces are stored as spaces
        tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    unk_id = _token_id(metadata, "unknown_token_id", tokens)
    unk = tokens[unk_id] if unk_id is not None else None
    scores = _values(metadata, "tokenizer.ggml.scores")
    if scores and len(scores) != len(tokens):
        raise ModelError(f"the GGUF file has {len(tokens)} tokens but {len(scores)} scores")
    kinds = _values(metadata, "tokenizer.ggml.token_type")
    named = {token for token, kind in zip(tokens, kinds) if kind in _NEVER_IN_TEXT}  # noqa: B905  a short list of kinds
    merges = _merges_from_scores(tokens, vocab, [] if gemma else scores, named)
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token=unk))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.normalizer = normalizers.Replace(" ", "▁")
    if metadata.get("tokenizer.ggml.add_space_prefix", not gemma):
        # SentencePiece's dummy prefix: one more space, also before a space and after every special token
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), core.normalizer])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    core.decoder = decoders.Sequence(steps)
    return core


def _merges_from_scores(
    tokens: list[str], vocab: dict[str, int], scores: list[float], named: set[str]
) -> list[tuple[str, str]]:
    """SentencePiece joins the two neighbours whose union scores highest; as merges: every way to cut a piece into two pieces,
    best union first. Without scores, the order of the pieces is their rank. `named` ones are no pieces: text that spells them
    stays text."""
    if sum(len(token) ** 2 for token in tokens) > MAX_CUTS:
        raise ModelError("the GGUF file has tokens that are much longer than those of any real vocabulary")
    pieces = vocab.keys() - named
    found: list[tuple[float, int, int, str, str]] = []
    for i, token in enumerate(tokens):
        if token in named:
            continue
        rank = -float(scores[i]) if scores else float(i)
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                found.append((rank, -len(left), -len(right), left, right))
    found.sort(key=lambda item: item[:3])
    return [(left, right) for _, _, _, left, right in found]


def _add_named_tokens(core: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    kinds = _values(metadata, "tokenizer.ggml.token_type")
    vocab_size = core.get_vocab_size()
    control, user = [], []
    for token, kind in zip(tokens, kinds):  # noqa: B905  a short list of kinds leaves the rest normal
        if kind in (_CONTROL, _UNKNOWN) and token:
            control.append(AddedToken(token, normalized=False, special=True))
        elif kind == _USER_DEFINED and token and core.token_to_id(token) is not None:
            user.append(AddedToken(token, normalized=False, special=False))
    core.add_special_tokens(control)
    core.add_tokens(user)
    if core.get_vocab_size() != vocab_size:
        raise ModelError("the GGUF file lists a token twice")


def _add_bos(core: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    model, pre = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre")
    default = model == "llama" or pre in ("llama3", "llama-v3", "llama-bpe")
    bos_id, eos_id = _token_id(metadata, "bos_token_id", tokens), _token_id(metadata, "eos_token_id", tokens)
    template, named = ["$A"], []
    if metadata.get("tokenizer.ggml.add_bos_token", default) and bos_id is not None:
        template.insert(0, tokens[bos_id])
        named.append((tokens[bos_id], bos_id))
    if metadata.get("tokenizer.ggml.add_eos_token", False) and eos_id is not None:
        template.append(tokens[eos_id])
        named.append((tokens[eos_id], eos_id))
    if named:
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
