"""The sources of a model's sampling defaults, and the routes that apply them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from sglang.srt.checkpoint.resolve import ALIASES, with_files
from sglang.srt.checkpoint.sampling_defaults import DEFAULTS, read_sampling_defaults
from sglang.srt.config import DEFAULT_MODEL, ModelFiles, SamplingDefaults
from sglang.srt.errors import ModelError
from sglang.srt.server_args import ServerArgs


def of_folder(tmp_path: Path, config: dict[str, Any] | None) -> SamplingDefaults:
    if config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
    return read_sampling_defaults(ModelFiles("folder", tmp_path, "m"))


def of_gguf(path: Path, **values: Any) -> SamplingDefaults:
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in values.items():
        key = f"general.sampling.{name}"
        writer.add_float32(key, value) if isinstance(value, float) else writer.add_int32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_sampling_defaults(ModelFiles("gguf", path, "m"))


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (None, DEFAULTS),
        ({}, DEFAULTS),
        ({"eos_token_id": 2, "transformers_version": "5"}, DEFAULTS),
        ({"do_sample": True}, DEFAULTS),
        ({"temperature": None}, DEFAULTS),
        ({"repetition_penalty": 1.05}, {**DEFAULTS, "repetition_penalty": 1.05}),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}, {"temperature": 0.7, "top_p": 0.8, "top_k": 20}),
        ({"top_p": 0.9, "top_k": 0}, {"top_p": 0.9}),
        ({"do_sample": False}, {"temperature": 0.0}),
    ],
)
def test_a_folder(tmp_path: Path, config: dict[str, Any] | None, values: dict[str, Any]) -> None:
    assert of_folder(tmp_path, config).values == values


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"top_p": True}, "top_p must be a number"),
        ({"top_k": 2.5}, "top_k"),
        ({"repetition_penalty": 7}, "--sampling-defaults openai"),
        ({"temperature": -1}, "temperature must be in"),
    ],
)
def test_a_bad_value_names_the_file(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        of_folder(tmp_path, config)
    assert "generation_config.json" in str(caught.value)


def test_a_gguf_file(tmp_path: Path) -> None:
    found = of_gguf(tmp_path / "a.gguf", temp=0.5, top_k=40, min_p=0.25, penalty_repeat=1.0)
    assert found.values == {"temperature": 0.5, "top_k": 40, "min_p": 0.25, "repetition_penalty": 1.0}
    assert of_gguf(tmp_path / "b.gguf").values == DEFAULTS


def test_an_alias_brings_its_own() -> None:
    config, alias = with_files(ServerArgs(model_path=DEFAULT_MODEL).resolve()), ALIASES[DEFAULT_MODEL]
    assert config.http.sampling_defaults == SamplingDefaults(dict(alias.sampling), "the alias", alias.system)
    assert 0 < alias.sampling["temperature"] < 1


def test_openai_means_those_of_the_api() -> None:
    config = with_files(ServerArgs(model_path=DEFAULT_MODEL, sampling_defaults="openai").resolve())
    assert config.http.sampling_defaults == SamplingDefaults()
