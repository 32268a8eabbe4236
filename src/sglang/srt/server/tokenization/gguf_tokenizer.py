"""A `tokenizers` Tokenizer from the metadata of a GGUF file.

The metadata holds the pieces, their kinds, and merges (model "gpt2": byte-level BPE; "gemma4": SentencePiece BPE) or scores ("llama":
SentencePiece BPE; "t5": SentencePiece Unigram) or neither ("bert": WordPiece). How text is split before merging is only named (`tokenizer.ggml.pre`); the patterns behind the names are
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
LLAMA3_SPLIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
QWEN2_SPLIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_QWEN35 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}"
_SPLITS = {
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
        LLAMA3_SPLIT,
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2_SPLIT),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "qwen35": _QWEN35,
}
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CASED_RANGES = (
    "B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 "
    "48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D "
    "1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 "
    "1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 "
    "213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B A722-A76F A771-A787 "
    "A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 "
    "10CC0-10CF2 118A0-118DF 1E900-1E943"
)
"""code points of letters that have capitals, besides A-Z and a-z"""
_CASED = "A-Za-z" + "".join("-".join(chr(int(end, 16)) for end in part.split("-")) for part in _CASED_RANGES.split())
_STEPS = {
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK),
    "deepseek-llm": (
        "[\r\n]",
        rf"\s?[{_CASED}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _CJK,
    ),
}
"""splits one after the other, then single digits"""
_THREE_STEPS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    rf"[!-/:-@\[-`{{-~][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}",
)
"""DeepSeek-V3's, whose digits go by threes"""
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
    elif model in ("llama", "gemma4"):
        core = _sentencepiece(metadata, tokens)
    elif model == "t5":
        core = _unigram(metadata, tokens)
    elif model == "bert":
        tokens = _with_marks(metadata, tokens)
        core = _word_pieces(metadata, tokens)
    else:
        raise ModelError(
            f"the GGUF file's tokenizer model {shown(model)} is not supported (gpt2, llama, gemma4, t5 and bert are)"
        )
    _add_named_tokens(core, metadata, tokens)
    _add_ends(core, metadata, tokens)
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
    merges = _merges(metadata)
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        core = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_PIECES))
    except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception
        raise ModelError(f"the GGUF file's merges do not fit its tokens: {str(error)[:200]}") from error
    core.pre_tokenizer = _split(pre)
    if _SPLITS.get(pre) in (QWEN2_SPLIT, _QWEN35):
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    return core


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    cut = [merge.partition(" ") for merge in _strings(metadata, "tokenizer.ggml.merges")]
    if not all(space for _, space, _ in cut):
        raise ModelError("the GGUF file's tokenizer.ggml.merges hold one that is not two pieces")
    return [(left, right) for left, _, right in cut]


def _split(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _DIGIT_SPLITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if pre in _GPT2_SPLITS:
        return gpt2
    if pre in ("deepseek-v3", "hunyuan-dense"):
        steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _THREE_STEPS]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if pre in _STEPS:
        steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _STEPS[pre]]
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([*steps, digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if pre == "falcon":
        runs, threes = pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
        return pre_tokenizers.Sequence([runs, gpt2, pre_tokenizers.Digits(individual_digits=False), threes])
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
    merges = _merges(metadata) or _merges_from_scores(tokens, vocab, [] if gemma else scores, named)
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token=unk))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.normalizer = normalizers.Replace(" ", "▁")
    if metadata.get("tokenizer.ggml.add_space_prefix", not gemma):
        # SentencePiece's dummy prefix: one more space, also before a space and after every special token
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), core.normalizer])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    core.decoder = decoders.Sequence(steps)
    return core


def _unigram(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """SentencePiece's Unigram: the most likely way to cut a text, by the pieces' scores."""
    scores = _values(metadata, "tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise ModelError(f"the GGUF file has {len(tokens)} tokens but {len(scores)} scores")
    kinds = _values(metadata, "tokenizer.ggml.token_type")
    core = Tokenizer(
        models.Unigram(
            vocab=[(token, float(score)) for token, score in zip(tokens, scores, strict=True)],
            unk_id=_token_id(metadata, "unknown_token_id", tokens),
            byte_fallback=_BYTE in kinds,
        )
    )
    steps: list[Any] = []
    if table := bytes(_values(metadata, "tokenizer.ggml.precompiled_charsmap")):
        steps.append(normalizers.Precompiled(table))
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces", False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    core.normalizer = normalizers.Sequence(steps)
    prefix = "always" if metadata.get("tokenizer.ggml.add_space_prefix", True) else "never"
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    plain = decoders.Metaspace(prepend_scheme=prefix)
    core.decoder = decoders.Sequence([decoders.ByteFallback(), plain]) if _BYTE in kinds else plain
    return core


def _with_marks(metadata: Mapping[str, Any], tokens: list[str]) -> list[str]:
    """BERT's own spelling: GGUF files mark what begins a word, BERT what goes on in one."""
    kinds = _values(metadata, "tokenizer.ggml.token_type")
    named = {i for i, kind in enumerate(kinds) if kind in (_CONTROL, _UNKNOWN)}
    return [
        token if i in named or _is_bracketed(token) else token[1:] if token.startswith("▁") else f"##{token}"
        for i, token in enumerate(tokens)
    ]


def _is_bracketed(token: str) -> bool:
    """[CLS], [unused5]: no pieces of words."""
    return len(token) > 2 and token.startswith("[") and token.endswith("]")


def _word_pieces(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """BERT's: the longest piece first, from the beginning of each word. Nothing in a file says whether capitals count: they do where the
    vocabulary has some."""
    vocab = {token: i for i, token in enumerate(tokens)}
    unk_id = _token_id(metadata, "unknown_token_id", tokens)
    unk = "[UNK]" if "[UNK]" in vocab or unk_id is None else tokens[unk_id]
    core = Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    is_cased = any(token.isascii() and token != token.lower() for token in tokens if not _is_bracketed(token))
    core.normalizer = normalizers.BertNormalizer(lowercase=not is_cased)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
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


def _add_ends(core: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Adds the tokens before and after a text. Of a pair, BERT's second text has the type 1."""
    model, pre = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre")
    both = model == "bert"
    first, last = _token_id(metadata, "bos_token_id", tokens), _token_id(metadata, "eos_token_id", tokens)
    if both:
        first = _first_known(metadata, ("cls_token_id", "bos_token_id"), tokens)
        last = _first_known(metadata, ("seperator_token_id", "separator_token_id", "eos_token_id"), tokens)
    default = both or model == "llama" or pre in ("llama3", "llama-v3", "llama-bpe")
    # Gemma 4's files ask for one, and its chat template writes it.
    adds_first = model != "gemma4" and metadata.get("tokenizer.ggml.add_bos_token", default)
    adds_last = metadata.get("tokenizer.ggml.add_eos_token", both or model == "t5")
    begin = [tokens[first]] if adds_first and first is not None else []
    end = [tokens[last]] if adds_last and last is not None else []
    named = [(token, i) for token, i in ((begin, first), (end, last)) if token]
    if not named:
        return
    core.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *end],
        pair=[*begin, "$A", *end, "$B:1", *(f"{token}:1" for token in end)] if both else [*begin, "$A", *end, "$B", *end],
        special_tokens=[(token[0], i) for token, i in named],
    )


def _first_known(metadata: Mapping[str, Any], names: tuple[str, ...], tokens: list[str]) -> int | None:
    return next((found for name in names if (found := _token_id(metadata, name, tokens)) is not None), None)
