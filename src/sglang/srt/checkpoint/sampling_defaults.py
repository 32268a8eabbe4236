"""The sampling defaults of a model, for fields that a request leaves out.

    alias            its own values (resolve.py)
    folder           generation_config.json
    .gguf            general.sampling.* in the metadata
    none of these    DEFAULTS

They apply to the chat and completion APIs. The native API and the language keep their documented defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang.srt.checkpoint.files import read_object, shown
from sglang.srt.checkpoint.gguf_reader import open_gguf
from sglang.srt.config import ModelFiles, SamplingDefaults
from sglang.srt.errors import ModelError, RequestError
from sglang.srt.sampling_params import parse_sampling_params

DEFAULTS: dict[str, float] = {"temperature": 0.6, "top_p": 0.95}
"""where the files say nothing: between the values that publishers of instruction-tuned models recommend"""

_GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_GGUF = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
"""key of the metadata -> field of SamplingParams (source: llama.cpp, gguf-py constants)"""
_SHAPING = frozenset(_GENERATION) - {"repetition_penalty"}
_LARGEST = 1 << 24


def read_sampling_defaults(files: ModelFiles) -> SamplingDefaults:
    """The defaults of a model. Raises ModelError naming the file and the value."""
    if files.sampling:
        return SamplingDefaults(dict(files.sampling), "the alias", files.system)
    if files.kind == "gguf":
        return _checked(files.path, "general.sampling", _from_metadata(files.path))
    path = files.path / "generation_config.json"
    return _checked(path, "generation_config.json", _from_generation_config(path))


def _from_generation_config(path: Path) -> dict[str, Any]:
    try:
        config = read_object(path)
    except FileNotFoundError:
        return {}
    if config.get("do_sample") is False:
        return {"temperature": 0.0}
    return {key: config[key] for key in _GENERATION if config.get(key) is not None}


def _from_metadata(path: Path) -> dict[str, Any]:
    metadata: Mapping[str, Any] = open_gguf(path).metadata
    return {name: metadata[key] for key, name in _GGUF.items() if key in metadata}


def _checked(path: Path, source: str, found: dict[str, Any]) -> SamplingDefaults:
    """Publishers write a top_k of 0 for none."""
    for name, value in found.items():
        if type(value) not in (int, float) or not abs(value) < _LARGEST:
            raise ModelError(f"{path}: {name} must be a number, got {shown(value)}")
    top_k = found.get("top_k")
    if top_k is not None and top_k <= 0:
        del found["top_k"]
    elif isinstance(top_k, float) and top_k.is_integer():
        found["top_k"] = int(top_k)
    try:
        parse_sampling_params(found)
    except RequestError as error:
        raise ModelError(f"{path}: {error}; --sampling-defaults openai does without these values") from error
    if _SHAPING & found.keys():
        return SamplingDefaults(found, source)
    return SamplingDefaults({**DEFAULTS, **found}, "the server" if not found else f"the server and {source}")
