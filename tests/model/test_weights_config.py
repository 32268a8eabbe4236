"""config.json and GGUF metadata as a ModelConfig: against transformers' own reading, and every way to be wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.gguf_reader import GGUFFile
from sglang.srt.errors import ModelError
from sglang.srt.model.model_config import PLAIN_LAYOUT, ModelConfig, RopeConfig
from sglang.srt.model.weights.config_reader import parse_model_config, read_model_config
from sglang.srt.model.weights.gguf_config import read_gguf_config

SOURCE = Path("/models/some/config.json")

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
GEMMA = {**LLAMA, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 13, "head_dim": 32}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}


def parse(raw: dict[str, Any], **overrides: Any) -> ModelConfig:
    return parse_model_config(raw, SOURCE, overrides)


def test_llama() -> None:
    config = parse({**LLAMA, "eos_token_id": [2, 5], "bos_token_id": 1, "torch_dtype": "bfloat16"})
    assert config == ModelConfig(
        architecture="llama",
        vocab_size=100,
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        context_len=512,
        norm_eps=1e-5,
        rope=RopeConfig(theta=10000.0, rotary_dim=16),
        eos_token_ids=(2, 5),
        bos_token_id=1,
        dtype="bfloat16",
    )


def test_flags_of_families() -> None:
    llama = parse({**LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"})
    assert (llama.attention_bias, llama.output_bias, llama.mlp_bias, llama.tie_word_embeddings) == (True, True, True, True)
    assert llama.gate == "gelu"
    qwen2 = parse(QWEN2)
    assert (qwen2.architecture, qwen2.attention_bias, qwen2.output_bias, qwen2.qk_norm) == ("qwen2", True, False, "")
    qwen3 = parse({**LLAMA, "architectures": ["Qwen3ForCausalLM"]})
    assert (qwen3.architecture, qwen3.qk_norm, qwen3.head_dim, qwen3.attention_bias) == ("qwen3", "head", 128, False)
    gemma = parse({**GEMMA, "query_pre_attn_scalar": 100, "final_logit_softcapping": 30.0, "attn_logit_softcapping": None})
    assert (gemma.architecture, gemma.gate, gemma.tie_word_embeddings, gemma.norm_offset) == ("gemma3", "gelu_tanh", True, 1.0)
    assert (gemma.query_scale, gemma.final_soft_cap, gemma.attn_soft_cap) == (0.1, 30.0, 0.0)
    assert gemma.embedding_scale == 8.0 and gemma.qk_norm == "head" and gemma.norm_place == "around"


def test_model_type_serves_where_no_class_is_named() -> None:
    raw = {name: value for name, value in LLAMA.items() if name != "architectures"}
    assert parse({**raw, "model_type": "qwen3"}).architecture == "qwen3"


def test_windows() -> None:
    assert parse({**LLAMA, "sliding_window": 8}).windowed_layers == ()  # llama has none, whatever stands there
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"]}
    assert (parse(mistral).sliding_window, parse(mistral).windowed_layers) == (4096, (True,) * 4)  # its class's default
    assert parse({**mistral, "sliding_window": None}).windowed_layers == ()
    assert parse({**QWEN2, "sliding_window": 8, "max_window_layers": 1}).sliding_window == 0
    on = {**QWEN2, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    assert (parse(on).sliding_window, parse(on).windowed_layers) == (8, (False, True, True, True))
    kinds = ["sliding_attention", "full_attention"] * 2
    assert parse({**on, "layer_types": kinds}).windowed_layers == (True, False, True, False)
    assert parse({**on, "layer_types": ["full_attention"] * 4}).sliding_window == 0
    assert parse({**on, "layer_types": kinds, "num_hidden_layers": 3}).windowed_layers == (True, False, True)
    gemma = parse({**GEMMA, "sliding_window": 16})
    assert [i for i, windowed in enumerate(gemma.windowed_layers) if not windowed] == [5, 11]
    third = parse({**GEMMA, "sliding_window_pattern": 3})
    assert [i for i, windowed in enumerate(third.windowed_layers) if not windowed] == [2, 5, 8, 11]


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
ROPES: dict[str, tuple[dict[str, Any], RopeConfig]] = {
    "theta": ({"rope_theta": 5e5}, RopeConfig(5e5, 16)),
    "new theta": ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, RopeConfig(5e5, 16)),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig(1e4, 16, "linear", 2.0)),
    "dynamic is the identity within the context": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        RopeConfig(1e4, 16),
    ),
    "llama3": (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        RopeConfig(5e5, 16, "llama3", 8.0, 128, 1.0, 4.0),
    ),
    "new llama3": (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
        RopeConfig(5e5, 16, "llama3", 8.0, 128, 1.0, 4.0),
    ),
    "yarn": (
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "beta_fast": 16}},
        RopeConfig(1e4, 16, "yarn", 4.0, 256, beta_fast=16.0),
    ),
    "yarn with everything": (
        {
            "rope_parameters": {
                "rope_type": "yarn", "factor": 2.0, "rope_theta": 1e6, "attention_factor": 1.5, "mscale": 0.7,
                "mscale_all_dim": 1.0, "truncate": False, "beta_slow": 2.0,
            }
        },
        RopeConfig(
            1e6, 16, "yarn", 2.0, 512, beta_slow=2.0, attention_factor=1.5, mscale=0.7, mscale_all_dim=1.0, truncate=False
        ),
    ),
    "half the head": ({"partial_rotary_factor": 0.5}, RopeConfig(1e4, 8)),
    "scaling over new parameters": (
        {"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {"type": "linear", "factor": 3.0}},
        RopeConfig(7.0, 16, "linear", 3.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROPES)
def test_rope(case: str) -> None:
    raw, expected = ROPES[case]
    assert parse({**LLAMA, **raw}).rope == expected


def test_yarn_makes_the_context_longer() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert parse({**LLAMA, "rope_scaling": scaling}).context_len == 2048
    assert parse({**LLAMA, "rope_scaling": {**scaling, "original_max_position_embeddings": 64}}).context_len == 512


def test_gemma_has_two_ropes() -> None:
    old = parse(
        {**GEMMA, "rope_theta": 2e6, "rope_local_base_freq": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    )
    assert old.rope == RopeConfig(2e6, 32, "linear", 8.0)
    assert old.local_rope == RopeConfig(5e3, 32)
    nested = {"full_attention": {"rope_theta": 3e6}, "sliding_attention": {"rope_theta": 4e3, "rope_type": "default"}}
    new = parse({**GEMMA, "rope_parameters": nested})
    assert (new.rope, new.local_rope) == (RopeConfig(3e6, 32), RopeConfig(4e3, 32))
    plain = parse(GEMMA)
    assert plain.local_rope is not None and (plain.rope.theta, plain.local_rope.theta) == (1e6, 1e4)


# --- against transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3Text"])
def test_defaults_are_those_of_transformers(name: str) -> None:
    """A config.json with nothing but sizes means what transformers makes of it."""
    transformers = pytest.importorskip("transformers")
    absent = ("architectures", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
    sizes = {k: v for k, v in LLAMA.items() if k not in absent} | {"num_attention_heads": 32, "hidden_size": 512}
    theirs = getattr(transformers, f"{name}Config")(**sizes)
    ours = parse({**sizes, "architectures": [f"{name.removesuffix('Text')}ForCausalLM"]})
    assert ours.num_kv_heads == theirs.num_key_value_heads and ours.context_len == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps and ours.tie_word_embeddings == theirs.tie_word_embeddings
    kinds = getattr(theirs, "layer_types", None)
    everywhere = theirs.to_dict().get("sliding_window") is not None
    windowed = tuple(kind == "sliding_attention" for kind in kinds) if kinds else (everywhere,) * 4
    assert ours.windowed_layers == (windowed if any(windowed) else ())
    if any(windowed):
        assert ours.sliding_window == theirs.sliding_window
    rope = theirs.rope_parameters
    assert ours.rope.theta == (rope.get("full_attention", rope))["rope_theta"]
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 16)


# --- overrides and files ------------------------------------------------------------------------------------------------------


def test_overrides() -> None:
    assert parse(LLAMA, num_hidden_layers=2).num_layers == 2
    assert parse({**LLAMA, "rope_parameters": {"rope_theta": 5.0}}, rope_theta=7.0).rope.theta == 7.0
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}
    assert parse({**LLAMA, "rope_parameters": {"rope_theta": 5.0}}, rope_scaling=yarn).context_len == 1024
    assert parse(LLAMA, architectures=["Qwen2ForCausalLM"]).architecture == "qwen2"
    with pytest.raises(ModelError, match="'num_layers' means nothing for this model; did you mean 'num_hidden_layers'"):
        parse(LLAMA, num_layers=2)
    with pytest.raises(ModelError, match="means nothing for this model; known here: architectures"):
        parse(LLAMA, zzz=2)


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_generation_config_adds_ends(tmp_path: Path) -> None:
    write(tmp_path, config={**LLAMA, "eos_token_id": 7}, generation_config={"eos_token_id": [9, 7]})
    assert read_model_config(tmp_path, {}).eos_token_ids == (9, 7)
    assert read_model_config(tmp_path, {"eos_token_id": 3}).eos_token_ids == (3,)


def test_files_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no config.json"):
        read_model_config(tmp_path, {})
    for content, message in (
        ("{", "is not valid JSON"),
        ("[1]", "should hold a JSON object"),
        ("[" * 100000, "not valid JSON"),
    ):
        write(tmp_path, config=content)
        with pytest.raises(ModelError, match=message):
            read_model_config(tmp_path, {})
    write(tmp_path, config=LLAMA, generation_config={"eos_token_id": "x"})
    with pytest.raises(ModelError, match="generation_config.json: eos_token_id must be a token id"):
        read_model_config(tmp_path, {})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "class": (
        {"architectures": ["FooForCausalLM"]},
        "architectures .FooForCausalLM. is not supported.*docs/models.md lists the",
    ),
    "type": ({"architectures": None, "model_type": "bert"}, "model_type 'bert' is not supported"),
    "classes": ({"architectures": "x"}, "architectures must be a list"),
    "missing": ({"hidden_size": None}, "hidden_size is missing"),
    "text": ({"hidden_size": "64"}, "hidden_size must be a positive integer, got '64'"),
    "true": ({"hidden_size": True}, "must be a positive integer"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers must be a positive integer"),
    "absurd": ({"vocab_size": 10**12}, "vocab_size must be at most 16777216"),
    "heads": ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)"),
    "eps": ({"rms_norm_eps": 0}, "rms_norm_eps must be a number above 1e-30"),
    "nan": ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a number above 1e-30"),
    "flag": ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
    "act": ({"hidden_act": "relu6"}, "hidden_act is 'relu6'; known: silu"),
    "odd head": ({"head_dim": 15}, "makes 15 of 15 elements rotate"),
    "rope type": ({"rope_scaling": {"type": "ntk"}}, "rope of type 'ntk'; known: default, linear"),
    "rope factor": ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    "rope low": ({"rope_scaling": {"type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
    "rope object": ({"rope_scaling": 3}, "rope_scaling must be an object"),
    "rope theta": ({"rope_theta": -1}, "rope_theta must be a number above 1"),
    "eos": ({"eos_token_id": [1, None]}, "eos_token_id must be a token id or a list"),
    "quantized": ({"quantization_config": {"quant_method": "hqq"}}, "says .hqq.; supported: awq"),
    "window": ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window must be a positive"),
    "layer types": ({"architectures": ["Gemma3ForCausalLM"], "layer_types": ["full_attention"]}, "must name 4 layers"),
    "layer kind": ({"architectures": ["Gemma3ForCausalLM"], "layer_types": ["chunked"] * 4}, "asks for 'chunked'"),
    "encoder": ({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": "vision"}, "must be true or false"),
}


@pytest.mark.parametrize("case", WRONG)
def test_configs_that_are_wrong(case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(ModelError, match=message) as caught:
        parse({**LLAMA, **changes})
    assert str(SOURCE) in str(caught.value)


# --- GGUF metadata ------------------------------------------------------------------------------------------------------------

KEYS: dict[str, Any] = {
    "block_count": 4,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def gguf_file(path: Path, arch: str = "llama", tensors: dict[str, Any] | None = None, **keys: Any) -> GGUFFile:
    """A GGUF file of metadata and a few tensors. Names of keys have __ for dots; None takes a key away."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path / "m.gguf"), arch)
    for name, value in {**KEYS, **{k.replace("__", "."): v for k, v in keys.items()}}.items():
        full = name if name.startswith(("tokenizer.", "split.")) else f"{arch}.{name}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        elif isinstance(value, str):
            writer.add_string(full, value)
        elif value is not None:
            writer.add_array(full, value)
    for name, value in {"token_embd.weight": np.zeros((100, 64), np.float32), **(tensors or {})}.items():
        if value is not None:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path / "m.gguf")


def test_gguf_llama(tmp_path: Path) -> None:
    ids = {"tokenizer__ggml__eos_token_id": 2, "tokenizer__ggml__eot_token_id": 5, "tokenizer__ggml__bos_token_id": 1}
    config = read_gguf_config(gguf_file(tmp_path, rope__freq_base=5e5, **ids), {})
    expected = parse({**LLAMA, "rope_theta": 5e5, "eos_token_id": [2, 5], "bos_token_id": 1, "dtype": "f32"})
    assert config.norm_eps == pytest.approx(1e-5)
    assert replace(config, norm_eps=1e-5, layout=PLAIN_LAYOUT) == replace(expected, tie_word_embeddings=True)
    file = GGUFFile(tmp_path / "m.gguf")
    assert read_gguf_config(file, {"num_hidden_layers": 1}).num_layers == 1
    assert read_gguf_config(file, {"rope_scaling": {"type": "linear", "factor": 2.0}}).rope.factor == 2.0
    with pytest.raises(ModelError, match="'attention_bias' is given by the tensors of a .gguf file"):
        read_gguf_config(file, {"attention_bias": True})


def test_gguf_tensors_tell_biases_and_head(tmp_path: Path) -> None:
    some = {"output.weight": np.zeros((100, 64), np.float32), "blk.0.attn_q.bias": np.zeros(64, np.float32)}
    config = read_gguf_config(gguf_file(tmp_path, "qwen2", tensors=some), {})
    assert (config.tie_word_embeddings, config.attention_bias, config.output_bias) == (False, True, False)


def test_gguf_ropes(tmp_path: Path) -> None:
    divisors = np.linspace(1, 8, 8).astype(np.float32)
    config = read_gguf_config(gguf_file(tmp_path, tensors={"rope_freqs.weight": divisors}), {})
    assert config.rope == RopeConfig(1e4, 16, freq_divisors=tuple(divisors.tolist()))
    linear = gguf_file(tmp_path, rope__scaling__type="linear", rope__scaling__factor=2.0)
    assert read_gguf_config(linear, {}).rope == RopeConfig(1e4, 16, "linear", 2.0)
    assert read_gguf_config(gguf_file(tmp_path, rope__scale_linear=4.0), {}).rope == RopeConfig(1e4, 16, "linear", 4.0)
    assert read_gguf_config(gguf_file(tmp_path, rope__scaling__type="none"), {}).rope == RopeConfig(1e4, 16)
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 256}
    config = read_gguf_config(gguf_file(tmp_path, "qwen2", **yarn), {})
    assert config.rope == RopeConfig(1e4, 16, "yarn", 4.0, 256) and config.context_len == 1024
    scaled = read_gguf_config(gguf_file(tmp_path, "qwen2", rope__scaling__attn_factor=0.5, **yarn), {}).rope
    assert scaled.attention_factor == pytest.approx(0.5 * (0.1 * math.log(4) + 1))


def test_gguf_gemma(tmp_path: Path) -> None:
    file = gguf_file(tmp_path, "gemma3", block_count=7, attention__sliding_window=32, attention__key_length=32,
                     attention__value_length=32, rope__freq_base=1e6)  # fmt: skip
    config = read_gguf_config(file, {})
    assert config.norm_offset == 0.0 and config.norm_place == "around" and config.qk_norm == "head"
    assert (config.sliding_window, config.windowed_layers) == (32, (True,) * 5 + (False, True))
    assert (config.rope, config.local_rope) == (RopeConfig(1e6, 32), RopeConfig(1e4, 32))
    assert config.query_scale == pytest.approx(32**-0.5)
    pattern = [True, False] * 3 + [True]
    written = gguf_file(
        tmp_path, "gemma3", block_count=7, attention__sliding_window=32, attention__sliding_window_pattern=pattern
    )
    assert read_gguf_config(written, {}).windowed_layers == tuple(pattern)
    big = gguf_file(tmp_path, "gemma3", block_count=62, attention__key_length=32, attention__value_length=32)
    assert read_gguf_config(big, {}).query_scale == pytest.approx(16**-0.5)


def test_gguf_mistral_window(tmp_path: Path) -> None:
    config = read_gguf_config(gguf_file(tmp_path, attention__sliding_window=64), {})
    assert (config.architecture, config.sliding_window, config.windowed_layers) == ("llama", 64, (True,) * 4)


GGUF_WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "arch": ("falcon", {}, "architecture 'falcon' is not supported; docs/models.md"),
    "experts": ("qwen2", {"expert_count": 8}, "qwen2 with experts is not supported"),
    "no router": ("llama", {"expert_count": 8}, "expert_count is 8, and no layer has a tensor 'ffn_gate_inp.weight'"),
    "no embedding": ("llama", {"tensors": {"token_embd.weight": None}}, "no matrix 'token_embd.weight'"),
    "missing": ("llama", {"embedding_length": None}, "llama.embedding_length is missing"),
    "no layers": ("llama", {"block_count": None}, "llama.block_count is missing"),
    "type": ("llama", {"block_count": "four"}, "llama.block_count must be a positive integer"),
    "zero": ("llama", {"attention__head_count": 0}, "attention.head_count must be a positive integer"),
    "layers differ": ("llama", {"attention__head_count_kv": [2, 1, 2, 2]}, "differs between layers"),
    "value length": ("llama", {"attention__value_length": 8}, "differs from the key length"),
    "partial": ("llama", {"rope__dimension_count": 8}, "only whole heads of 16 rotate"),
    "divisors": ("llama", {"tensors": {"rope_freqs.weight": np.ones(3, np.float32)}}, "rope_freqs.weight"),
    "rope type": ("llama", {"rope__scaling__type": "ntk"}, "rope of type 'ntk'"),
    "rope base": ("llama", {"rope__freq_base": "x"}, "rope.freq_base must be a number"),
    "window": ("qwen2", {"attention__sliding_window": 64}, "says not which layers"),
}


@pytest.mark.parametrize("case", GGUF_WRONG)
def test_gguf_metadata_that_is_wrong(case: str, tmp_path: Path) -> None:
    arch, changes, message = GGUF_WRONG[case]
    with pytest.raises(ModelError, match=message) as caught:
        read_gguf_config(gguf_file(tmp_path, arch, **changes), {})
    assert "m.gguf" in str(caught.value)


def test_gguf_number_for_every_layer_alike(tmp_path: Path) -> None:
    assert read_gguf_config(gguf_file(tmp_path, attention__head_count_kv=[2, 2, 2, 2]), {}).num_kv_heads == 2
