"""Reads the text settings of a sentence-transformers folder: length limit, lower case, prompts.

    sentence_bert_config.json             max_seq_length, do_lower_case; earlier versions name the file after other models
    tokenizer_config.json                 model_max_length, where max_seq_length is missing
    config_sentence_transformers.json     prompts, default_prompt_name, model_type

Source of the formats: sentence-transformers, up to version 6. Settings that would change a vector and are not implemented are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.files import read_object, read_text, shown
from sglang.srt.errors import ModelError

MODULES_FILE = "modules.json"
_KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_MAX_LEN = 1 << 30
"""tokenizers without a limit say 1e30"""
_IDLE = frozenset({"max_seq_length", "do_lower_case", "unpad_inputs", "modality_config", "tokenizer_name_or_path"})
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    **dict.fromkeys(("processing_kwargs", "model_args", "tokenizer_args", "config_args"), ({},)),
    **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs"), ({},)),
    **dict.fromkeys(("query_length", "document_length", "query_expansion"), ()),
}
"""values that change nothing, as null"""
_OTHER_KINDS = ("SparseEncoder", "CrossEncoder", "MultiVectorEncoder")


@dataclass(frozen=True)
class SentenceFacts:
    """`max_len`: tokens of a text, its special ones among them; None for as many as the model takes. `lowers`: capitals are made small.
    `prompts`: what stands before a text, by name; `default`: before one for which none is named."""

    max_len: int | None = None
    lowers: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str = ""

    def first_of(self, *names: str) -> str:
        """The first of these prompts that there is, else the default."""
        return next((self.prompts[name] for name in names if name in self.prompts), self.default)


def read_sentence_facts(folder: Path) -> SentenceFacts:
    """Reads the facts of a model's folder. Raises ModelError naming the file and the key."""
    if not (folder / MODULES_FILE).exists():
        return SentenceFacts()
    path, config = _read_transformer(folder)
    for key, value in config.items():
        if key not in _IDLE and value is not None and value not in _ALLOWED.get(key, ()):
            raise ModelError(f"{path}: {key[:60]!r} is {shown(value)}, which is not supported and might change every vector")
    prompts, default = _read_prompts(folder / "config_sentence_transformers.json")
    return SentenceFacts(_max_len(path, config, folder), _flag(path, config, "do_lower_case"), prompts, default)


def module_folders(folder: Path) -> list[str]:
    """The folders below that modules.json names. Raises ModelError if it is damaged."""
    return [place for _, place in read_modules(folder) or () if place]


def read_modules(folder: Path) -> list[tuple[str, str]] | None:
    """(class name, its folder below) of each module, None if there is no list. A class of another package than sentence_transformers has
    its whole name: it is not what the last part of it says. Raises ModelError."""
    path = folder / MODULES_FILE
    try:
        listed = json.loads(read_text(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}): download it again") from error
    found = []
    for entry in listed if isinstance(listed, list) else [None]:
        kind, place = (entry.get("type"), entry.get("path", "")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(place, str) or ".." in place or place.startswith("/"):
            raise ModelError(
                f"{path} must list modules, each with a type and the path of a folder below, and has {shown(entry)}"
            )
        found.append((kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind, place))
    return found


def _read(path: Path) -> dict[str, Any]:
    """Empty when there is no such file."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}


def _read_transformer(folder: Path) -> tuple[Path, dict[str, Any]]:
    paths = [folder / f"sentence_{kind}_config.json" for kind in _KINDS]
    path = next((path for path in paths if path.exists()), paths[0])
    return path, _read(path)


def _max_len(path: Path, config: dict[str, Any], folder: Path) -> int | None:
    key, value = "max_seq_length", config.get("max_seq_length")
    if value is None:
        path, key = folder / "tokenizer_config.json", "model_max_length"
        value = _read(path).get(key)
    if value is None or (isinstance(value, (int, float)) and value > _MAX_LEN):
        return None
    if type(value) is not int or value < 1:
        raise ModelError(f"{path}: {key} must be a count of tokens, got {shown(value)}")
    return value


def _flag(path: Path, config: dict[str, Any], key: str) -> bool:
    value = config.get(key)
    if not isinstance(value, bool | None):
        raise ModelError(f"{path}: {key} must be true or false, got {shown(value)}")
    return bool(value)


def _has_labels(folder: Path) -> bool:
    """Whether the model has a head for labels: a cross-encoder is one, and makes no vectors."""
    classes = _read(folder / "config.json").get("architectures")
    return isinstance(classes, list) and any(str(name).endswith("ForSequenceClassification") for name in classes)


def _read_prompts(path: Path) -> tuple[dict[str, str], str]:
    config = _read(path)
    if config.get("model_type") in _OTHER_KINDS and not _has_labels(path.parent):
        raise ModelError(f"{path}: model_type is {shown(config['model_type'])}, whose vectors are not supported")
    prompts, name = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ModelError(f"{path}: prompts must be texts by name, got {shown(prompts)}")
    found = {"query": "", "document": "", **{key: text or "" for key, text in prompts.items()}}
    if name is not None and name not in found:
        raise ModelError(f"{path}: default_prompt_name is {shown(name)}, which is not one of the prompts")
    return found, found[name] if name is not None else ""
