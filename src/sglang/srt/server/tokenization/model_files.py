"""Reads the text settings of a model's files: the tokenizer, special tokens, stop tokens, chat templates, defaults.

folder   tokenizer.json (else tokenizer.model, tekken.json, *.tiktoken), tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json,
         chat_template.jinja | chat_template.json | additional_chat_templates/*.jinja
.gguf    the keys tokenizer.* of the metadata
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers
import tokenizers.normalizers
import tokenizers.processors

from sglang.srt.checkpoint.files import read_object, read_text, shown
from sglang.srt.checkpoint.gguf_reader import open_gguf
from sglang.srt.checkpoint.sentence_files import MODULES_FILE, SentenceFacts, read_sentence_facts
from sglang.srt.errors import ModelError, SglangError
from sglang.srt.server.tokenization.gguf_tokenizer import build_gguf_tokenizer
from sglang.srt.server.tokenization.named_templates import named_template
from sglang.srt.server.tokenization.vocabulary_files import find_vocabulary, read_vocabulary

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_CACHE_VERSION = 3
"""of the form in which tokenizers are kept"""
MAX_TOKENIZER_BYTES = 128 << 20
"""the largest published tokenizer.json has 33 MB"""
MAX_TOKENS, MAX_GAPS = 1 << 24, 1 << 16
MAX_TEMPLATES = 32
MAX_NAME_CHARS = 1024
_SLOW_TO_BUILD = "llama"
"""the GGUF tokenizer model whose merges have to be worked out, which takes a second or more"""


@dataclass(frozen=True)
class TextFacts:
    """`names`: the special tokens templates ask for. `templates`: by name, "default" first of all. `add_bos` applies when the tokenizer itself is silent. `sentences`: of
    texts that are to be embedded. `stops`: texts that end an answer in a chat."""

    names: dict[str, str] = field(default_factory=dict)
    eos_token_ids: frozenset[int] = frozenset()
    bos_token_id: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    templates: dict[str, str] = field(default_factory=dict)
    sentences: SentenceFacts = SentenceFacts()
    stops: tuple[str, ...] = ()


def with_template(name: str, facts: TextFacts, core: tokenizers.Tokenizer) -> TextFacts:
    """The facts with the template that `--chat-template` names in place of the model's own. Raises ConfigError."""
    named = named_template(name)
    bos = facts.bos_token_id
    begins = bos is not None and (core.encode("a").ids[:1] == [bos] or (facts.add_bos and core.post_processor is None))
    source = "{{ bos_token }}" + named.source if named.opens and begins else named.source
    special = {token.content: i for i, token in core.get_added_tokens_decoder().items() if token.special}
    return replace(
        facts,
        templates={"default": source},
        eos_token_ids=facts.eos_token_ids | {special[text] for text in named.stops if text in special},
        stops=tuple(text for text in named.stops if text not in special),
    )


# --- folders ----------------------------------------------------------------------------------------------------------------


def read_folder(folder: Path, cache: Path | None) -> tuple[tokenizers.Tokenizer, str, TextFacts]:
    """The tokenizer, its JSON and the facts. A tokenizer that is slow to build is kept in the folder `cache`. Raises ModelError naming
    the file at fault."""
    path = folder / "tokenizer.json"
    try:
        text = read_text(path, MAX_TOKENIZER_BYTES)
        core = _parse_tokenizer(text, str(path))
    except FileNotFoundError:
        core, text = _read_vocabulary(folder, cache)
    facts = _folder_facts(folder, core)
    if facts.sentences.lowers and "Lowercase" not in str(core.normalizer):
        core.normalizer = _lowering(core.normalizer)
        text = core.to_str()
    if facts.add_eos and (eos := facts.names.get("eos_token")) is not None and _end_with(core, eos, facts):
        text = core.to_str()
    return core, text, facts


def _end_with(core: tokenizers.Tokenizer, eos: str, facts: TextFacts) -> bool:
    """Has texts end with this token. False if they do already."""
    inner, outer = core.encode("a", add_special_tokens=False).ids, core.encode("a").ids
    at = next((i for i in range(len(outer)) if outer[i : i + len(inner)] == inner), 0)
    before, after, eos_id = outer[:at], outer[at + len(inner) :], core.token_to_id(eos)
    if eos_id is None or after[-1:] == [eos_id]:
        return False
    if facts.add_bos and core.post_processor is None and facts.bos_token_id is not None:
        before = [facts.bos_token_id]
    names = {i: core.id_to_token(i) for i in (*before, *after, eos_id)}
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=[*(names[i] for i in before), "$A", *(names[i] for i in after), eos],
        special_tokens=[(name, i) for i, name in names.items()],
    )
    return True


def _read_vocabulary(folder: Path, cache: Path | None) -> tuple[tokenizers.Tokenizer, str]:
    """Reads the vocabulary of a folder without a tokenizer.json."""
    path = find_vocabulary(folder)
    if path is None:
        raise ModelError(
            f"{folder} has no tokenizer.json, tokenizer.model, tekken.json or *.tiktoken; give a folder that has one with "
            "--tokenizer-path"
        )
    others = [folder / name for name in ("tokenizer_config.json", "config.json")]
    entry = None if cache is None else cache / f"{_identity(path, *(each for each in others if each.exists()))}.json"
    text = _read_cached(entry)
    if text is not None:
        return _parse_tokenizer(text, str(entry)), text
    with checked(str(path)):
        core = read_vocabulary(path, *(_read_json(each) for each in others))
        check_ids(core, str(path))
    text = core.to_str()
    if entry is not None:
        _write_cached(entry, text)
    return core, text


def _lowering(normalizer: Any) -> Any:
    """It, after capitals have been made small."""
    first = tokenizers.normalizers.Lowercase()
    return first if normalizer is None else tokenizers.normalizers.Sequence([first, normalizer])


def _parse_tokenizer(text: str, where: str) -> tokenizers.Tokenizer:
    with checked(where):
        core = tokenizers.Tokenizer.from_str(text)
        check_ids(core, where)
    return core


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library gave up in a way that it has no words for. Its class is no Exception and not exported."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def checked(where: str) -> Iterator[None]:
    """Turns what the tokenizers library says of a damaged tokenizer into ModelError. Its panics are no Exception."""
    try:
        yield
    except SglangError as error:
        if where in str(error):
            raise
        raise ModelError(f"{where}: {error}") from error
    except BaseException as error:  # noqa: BLE001
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{where} is not a tokenizer that can be read: {reason[0][:200]}") from error


def check_ids(core: tokenizers.Tokenizer, where: str) -> None:
    """Tables have a place for every id: a vocabulary may have gaps, but must not be gaps for the most part."""
    ids = core.get_vocab(with_added_tokens=True).values()
    largest, count = max(ids, default=-1), len(ids)
    if count == 0:
        raise ModelError(f"{where} has no tokens")
    if largest >= MAX_TOKENS or largest > 2 * count + MAX_GAPS:
        raise ModelError(f"{where} has {count} tokens, and the id of one is {largest}, which is far beyond them")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty when there is no such file."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}


def _folder_facts(folder: Path, core: tokenizers.Tokenizer) -> TextFacts:
    config = _read_json(folder / "tokenizer_config.json")
    generation = _read_json(folder / "generation_config.json")
    model = _read_json(folder / "config.json")
    names = _names(folder, _read_json(folder / "special_tokens_map.json") | config)
    bos = names.get("bos_token")
    ends = _ids(folder / "generation_config.json", generation) | _ids(folder / "config.json", model)
    text_config = model.get("text_config")
    if isinstance(text_config, dict):
        ends |= _ids(folder / "config.json", text_config)
    if (eos := names.get("eos_token")) is not None and (eos_id := core.token_to_id(eos)) is not None:
        ends |= {eos_id}
    return TextFacts(
        names=names,
        eos_token_ids=frozenset(ends),
        bos_token_id=core.token_to_id(bos) if bos is not None else None,
        add_bos=config.get("add_bos_token") is True,
        add_eos=config.get("add_eos_token") is True and _embeds(folder, model),
        templates=_folder_templates(folder, config),
        sentences=read_sentence_facts(folder),
    )


def _embeds(folder: Path, model: Mapping[str, Any]) -> bool:
    """Whether the folder's model makes vectors of texts. One that generates could not go on behind an end, whatever its files say."""
    classes = model.get("architectures")
    named = classes if isinstance(classes, list) else []
    return (folder / MODULES_FILE).exists() or any(isinstance(name, str) and name.endswith("Model") for name in named)


def _names(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Values are a token's name or an object around it."""
    names = {}
    for key in _NAMED:
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if value is None or value == "":
            continue
        if not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
            raise ModelError(f"{folder / 'tokenizer_config.json'}: {key} must be the name of a token, got {shown(value)}")
        names[key] = value
    return names


def _ids(path: Path, config: Mapping[str, Any], key: str = "eos_token_id") -> set[int]:
    """The ids under a key: none, one or a list."""
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int and 0 <= i < MAX_TOKENS for i in ids):
        raise ModelError(f"{path}: {key} must be a token id or a list of them, got {shown(value)}")
    return set(ids)


def _folder_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Files come before tokenizer_config.json, whose template is a text or a list of named ones."""
    path = folder / "tokenizer_config.json"
    found: dict[str, str] = {}
    value = config.get("chat_template")
    if isinstance(value, str):
        found["default"] = value
    elif isinstance(value, list):
        for entry in value:
            name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(source, str):
                raise ModelError(f"{path}: chat_template lists {shown(entry)}, which is not a name with a template")
            found[name] = source
    elif value is not None:
        raise ModelError(f"{path}: chat_template must be a text or a list of named ones, got {shown(value)}")
    template = _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, str):
        found["default"] = template
    elif template is not None:
        raise ModelError(f"{folder / 'chat_template.json'}: chat_template must be a text, got {shown(template)}")
    files = {"default": folder / "chat_template.jinja"}
    files.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
    for name, path in files.items():
        with contextlib.suppress(FileNotFoundError):
            found[name] = read_text(path)
    if len(found) > MAX_TEMPLATES:
        raise ModelError(f"{folder} has {len(found)} chat templates, and {MAX_TEMPLATES} are the most")
    return found


# --- GGUF -------------------------------------------------------------------------------------------------------------------


def read_gguf(path: Path, cache: Path | None) -> tuple[tokenizers.Tokenizer, str | None, TextFacts]:
    """Like `read_folder`, for a GGUF file. A tokenizer that is slow to build is kept in the folder `cache`."""
    metadata = open_gguf(path).metadata
    model = metadata.get("tokenizer.ggml.model")
    entry = None
    if cache is not None and isinstance(model, str) and model == _SLOW_TO_BUILD:
        entry = cache / f"{_identity(path)}.json"
    text = _read_cached(entry)
    if text is None:
        with checked(str(path)):
            core = build_gguf_tokenizer(metadata)
            check_ids(core, str(path))
    else:
        core = _parse_tokenizer(text, str(entry))
    if entry is not None and text is None:
        text = core.to_str()
        _write_cached(entry, text)
    return core, text, _gguf_facts(path, metadata, core)


def _gguf_facts(path: Path, metadata: Mapping[str, Any], core: tokenizers.Tokenizer) -> TextFacts:
    ids = {
        "bos_token": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token": metadata.get("tokenizer.ggml.eos_token_id"),
        "unk_token": metadata.get("tokenizer.ggml.unknown_token_id"),
        "pad_token": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    names = {
        key: name
        for key, i in ids.items()
        if type(i) is int and 0 <= i < MAX_TOKENS and (name := core.id_to_token(i)) is not None
    }
    ends: set[int] = set()
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        ends |= _ids(path, metadata, f"tokenizer.ggml.{key}")
    templates = {}
    for key in metadata:
        if key.startswith("tokenizer.chat_template") and isinstance(source := metadata[key], str):
            templates[key.removeprefix("tokenizer.chat_template").lstrip(".") or "default"] = source
    if len(templates) > MAX_TEMPLATES:
        raise ModelError(f"{path} has {len(templates)} chat templates, and {MAX_TEMPLATES} are the most")
    bos = ids["bos_token"]
    return TextFacts(
        names=names,
        eos_token_ids=frozenset(ends),
        bos_token_id=bos if type(bos) is int and "bos_token" in names else None,
        templates=templates,
    )


def _identity(*paths: Path) -> str:
    """A digest of the files as they are now."""
    states = [(path.resolve(), path.stat()) for path in paths]
    key = f"{_CACHE_VERSION}:" + ":".join(f"{path}:{status.st_size}:{status.st_mtime_ns}" for path, status in states)
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _read_cached(entry: Path | None) -> str | None:
    if entry is None:
        return None
    try:
        return entry.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _write_cached(entry: Path, text: str) -> None:
    """Whole or not at all; a cache that cannot be written is done without."""
    partial = entry.with_suffix(f".{os.getpid()}.part")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(entry)
    except OSError:
        return
