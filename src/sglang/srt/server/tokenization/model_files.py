"""What a model's files say about its text: the tokenizer, special tokens, ends of generation, chat templates, defaults.

folder   tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json,
         chat_template.jinja | chat_template.json | additional_chat_templates/*.jinja
.gguf    the keys tokenizer.* of the metadata
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.errors import ModelError
from sglang.srt.server.tokenization.gguf_tokenizer import build_gguf_tokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_CACHE_VERSION = 1
_SLOW_TO_BUILD = "llama"
"""the GGUF tokenizer model whose merges have to be worked out, which takes a second or more"""


@dataclass(frozen=True)
class TextFacts:
    """`names`: the special tokens templates ask for. `sampling_defaults`: from generation_config.json, by the names of
    SamplingParams. `templates`: by name, "default" first of all. `add_bos` applies when the tokenizer itself is silent."""

    names: dict[str, str] = field(default_factory=dict)
    eos_token_ids: frozenset[int] = frozenset()
    bos_token_id: int | None = None
    add_bos: bool = False
    templates: dict[str, str] = field(default_factory=dict)
    sampling_defaults: dict[str, Any] = field(default_factory=dict)


# --- folders ----------------------------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[tokenizers.Tokenizer, str, TextFacts]:
    """The tokenizer, its JSON and the facts. Raises ModelError naming the file at fault."""
    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no tokenizer.json; give a folder that has one with --tokenizer-path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    core = _parse_tokenizer(text, str(path))
    return core, text, _folder_facts(folder, core)


def _parse_tokenizer(text: str, where: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception
        raise ModelError(f"{where} is not a tokenizer that can be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty when there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} should hold a JSON object")
    return value


def _folder_facts(folder: Path, core: tokenizers.Tokenizer) -> TextFacts:
    config = _read_json(folder / "tokenizer_config.json")
    generation = _read_json(folder / "generation_config.json")
    model = _read_json(folder / "config.json")
    names = _names(_read_json(folder / "special_tokens_map.json") | config)
    bos = names.get("bos_token")
    ends = _ids(generation.get("eos_token_id")) | _ids(model.get("eos_token_id"))
    text_config = model.get("text_config")
    if isinstance(text_config, dict):
        ends |= _ids(text_config.get("eos_token_id"))
    if (eos := names.get("eos_token")) is not None and (eos_id := core.token_to_id(eos)) is not None:
        ends |= {eos_id}
    return TextFacts(
        names=names,
        eos_token_ids=frozenset(ends),
        bos_token_id=core.token_to_id(bos) if bos is not None else None,
        add_bos=config.get("add_bos_token") is True,
        templates=_folder_templates(folder, config),
        sampling_defaults=_sampling_defaults(generation),
    )


def _sampling_defaults(generation: dict[str, Any]) -> dict[str, Any]:
    """How the model's makers sample. There, a top_k of 0 means none."""
    if not generation.get("do_sample", True):
        return {}
    found = {key: generation[key] for key in _SAMPLING if type(generation.get(key)) in (int, float)}
    if found.get("top_k") == 0:
        del found["top_k"]
    return found


def _names(config: dict[str, Any]) -> dict[str, str]:
    """Values are a token's name or an object around it."""
    names = {}
    for key in _NAMED:
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[key] = value
    return names


def _ids(value: Any) -> set[int]:
    return {i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int) and not isinstance(i, bool)}


def _folder_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Files come before tokenizer_config.json, whose template is a text or a list of named ones."""
    found: dict[str, str] = {}
    value = config.get("chat_template")
    if isinstance(value, str):
        found["default"] = value
    elif isinstance(value, list):
        found.update({t["name"]: t["template"] for t in value if isinstance(t, dict) and {"name", "template"} <= t.keys()})
    if isinstance(template := _read_json(folder / "chat_template.json").get("chat_template"), str):
        found["default"] = template
    files = {"default": folder / "chat_template.jinja"}
    files.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
    for name, path in files.items():
        if path.is_file():
            found[name] = path.read_text(encoding="utf-8")
    return found


# --- GGUF -------------------------------------------------------------------------------------------------------------------


def read_gguf(path: Path, cache: Path | None) -> tuple[tokenizers.Tokenizer, str | None, TextFacts]:
    """As `read_folder`. A tokenizer that is slow to build is kept in the folder `cache`."""
    metadata = GGUFFile(path).metadata
    entry = None
    if cache is not None and metadata.get("tokenizer.ggml.model") == _SLOW_TO_BUILD:
        entry = cache / f"{_identity(path)}.json"
    text = _read_cached(entry)
    core = build_gguf_tokenizer(metadata) if text is None else _parse_tokenizer(text, str(entry))
    if entry is not None and text is None:
        text = core.to_str()
        _write_cached(entry, text)
    return core, text, _gguf_facts(metadata, core)


def _gguf_facts(metadata: Mapping[str, Any], core: tokenizers.Tokenizer) -> TextFacts:
    ids = {
        "bos_token": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token": metadata.get("tokenizer.ggml.eos_token_id"),
        "unk_token": metadata.get("tokenizer.ggml.unknown_token_id"),
        "pad_token": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    names = {key: name for key, i in ids.items() if isinstance(i, int) and (name := core.id_to_token(i)) is not None}
    ends: set[int] = set()
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        ends |= _ids(metadata.get(f"tokenizer.ggml.{key}"))
    templates = {}
    for key in metadata:
        if key.startswith("tokenizer.chat_template") and isinstance(source := metadata[key], str):
            templates[key.removeprefix("tokenizer.chat_template").lstrip(".") or "default"] = source
    bos = ids["bos_token"]
    return TextFacts(
        names=names,
        eos_token_ids=frozenset(ends),
        bos_token_id=bos if isinstance(bos, int) and "bos_token" in names else None,
        templates=templates,
    )


def _identity(path: Path) -> str:
    status = path.stat()
    key = f"{_CACHE_VERSION}:{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
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
