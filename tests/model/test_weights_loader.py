"""Checkpoints: the same tensors as transformers has, from folders and GGUF files; conversions; every contradiction named."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.resolve import DEFAULT_MODEL, ModelFiles, resolve_model
from sglang.srt.config import ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.model_config import PLAIN_LAYOUT, RopeConfig
from sglang.srt.model.quant.formats import quantize_q8_0
from sglang.srt.model.weights.loader import Checkpoint, Conversion, load_checkpoint, read_config
from sglang.srt.model.weights.safetensors_reader import SafetensorsSource

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 70,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama biased": ("LlamaConfig", "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "head_dim": 8}),
    "llama tied": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 32}),
}


def save(folder: Path, family: str = "llama", dtype: str = "float32", **extra: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A random model of transformers in `folder`; returns its tensors in float32."""
    config_name, class_name, changes = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(getattr(transformers, config_name)(**SIZES, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, **extra)
    return {name: value.float().numpy() for name, value in model.state_dict().items()}


def open_folder(folder: Path, **options: Any) -> Checkpoint:
    return load_checkpoint(resolve_model(str(folder)), ModelOptions(str(folder), **options))


def values(checkpoint: Checkpoint, name: str) -> np.ndarray[Any, Any]:
    return checkpoint.tensor(name).dequantize()


# --- safetensors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_holds_what_transformers_saved(family: str, dtype: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, family, dtype)
    checkpoint = open_folder(tmp_path)
    assert checkpoint.config.dtype == dtype
    tied = checkpoint.config.tie_word_embeddings
    assert set(checkpoint.names) == set(theirs) - ({"lm_head.weight"} if tied else set())
    assert checkpoint.has("lm_head.weight") == (not tied) and not checkpoint.has("model.layers.2.mlp.up_proj.weight")
    assert checkpoint.num_params == sum(theirs[name].size for name in checkpoint.names)
    for name in checkpoint.names:
        np.testing.assert_array_equal(values(checkpoint, name), theirs[name], name)
    norm = checkpoint.vector("model.layers.1.input_layernorm.weight")
    expected = theirs["model.layers.1.input_layernorm.weight"] + np.float32(family == "gemma3")
    assert norm.dtype == np.float32
    np.testing.assert_array_equal(norm, expected)
    if family in ("qwen3", "gemma3"):
        q_norm = theirs["model.layers.0.self_attn.q_norm.weight"] + np.float32(family == "gemma3")
        np.testing.assert_array_equal(checkpoint.vector("model.layers.0.self_attn.q_norm.weight"), q_norm)


def test_biases_get_no_norm_offset(tmp_path: Path) -> None:
    theirs = save(tmp_path, "qwen2")
    name = "model.layers.1.self_attn.k_proj.bias"
    np.testing.assert_array_equal(open_folder(tmp_path).vector(name), theirs[name])


def test_shards(tmp_path: Path) -> None:
    theirs = save(tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    checkpoint = open_folder(tmp_path)
    for name in checkpoint.names:
        np.testing.assert_array_equal(values(checkpoint, name), theirs[name])
    index = tmp_path / "model.safetensors.index.json"
    kept = index.read_text()
    index.unlink()  # without the index, all files are read
    np.testing.assert_array_equal(values(open_folder(tmp_path), "lm_head.weight"), theirs["lm_head.weight"])
    index.write_text(kept)
    shards[1].rename(tmp_path / "gone")
    with pytest.raises(ModelError, match=f"lacks 1 of {len(shards)} shards, first {shards[1].name}"):
        open_folder(tmp_path)


def test_names_of_the_bare_decoder(tmp_path: Path) -> None:
    theirs = save(tmp_path, "llama tied")
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "model.safetensors"
    save_file({name.removeprefix("model."): value for name, value in load_file(path).items()}, path)
    name = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(values(open_folder(tmp_path), name), theirs[name])


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    save(tmp_path)
    tensor = open_folder(tmp_path).tensor("lm_head.weight")
    assert not tensor.data.flags.owndata and not tensor.data.flags.writeable


def test_unaligned_header(tmp_path: Path) -> None:
    """Old writers did not pad the header; values come out right and aligned all the same."""
    data = np.arange(8, dtype="<f4")
    header = json.dumps({"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).encode()
    header += b" " * ((3 - len(header)) % 8)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data.tobytes())
    tensor = SafetensorsSource(tmp_path).read("w")
    assert tensor.data.flags.aligned
    assert tensor.dequantize().tolist() == data.tolist()


def safetensors(header: Any, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (16,), span: Any = (0, 64)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": span}}


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"\1\2\3", "the file has 3"),
    "header beyond the file": (safetensors({}, b"", 1 << 40), "header should have 1099511627776 bytes"),
    "not JSON": (safetensors(b"{x"), "header is not JSON"),
    "not text": (safetensors(b"\xff\xfe\xfa\xfb"), "header is not JSON"),
    "deep": (safetensors(b"[" * 100000), "header is not JSON"),
    "list": (safetensors([1]), "not a JSON object"),
    "entry": (safetensors({"w": 3}), "entry of 'w' is not an object"),
    "dtype": (safetensors(entry(dtype=4)), "lacks a proper dtype"),
    "shape": (safetensors(entry(shape=[-1])), "lacks a proper dtype, shape"),
    "shape of text": (safetensors(entry(shape="16")), "lacks a proper dtype, shape"),
    "span": (safetensors(entry(span=[0])), "lacks a proper dtype"),
    "backwards": (safetensors(entry(span=[64, 0])), "ends before it begins"),
    "size": (safetensors(entry(shape=[17])), "of shape [17] in F32 cannot take 64 bytes"),
    "huge": (safetensors(entry(shape=[1 << 40, 1 << 40])), "cannot take 64 bytes"),
    "truncated": (safetensors(entry(), bytes(63)), "is truncated: tensor 'w' should end at byte"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_safetensors(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        SafetensorsSource(tmp_path)
    assert str(path) in str(caught.value)


def test_every_truncation_of_a_real_file(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for end in (*range(0, 64), *range(64, len(content), 4999), len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(ModelError, match=str(path)):
            open_folder(tmp_path)


INDEXES: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "is not valid JSON"),
    "no map": ("{}", "is damaged"),
    "map of another kind": ('{"weight_map": [1]}', "is damaged"),
    "elsewhere": ('{"weight_map": {"w": "../../etc/passwd"}}', "not a .safetensors file in the same folder"),
    "absent": ('{"weight_map": {"w": "a.safetensors"}}', "lacks 1 of 1 shards"),
    "promises": ('{"weight_map": {"nope": "model.safetensors"}}', "lacks the tensor 'nope' that"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_damaged_index(case: str, tmp_path: Path) -> None:
    content, message = INDEXES[case]
    (tmp_path / "model.safetensors").write_bytes(safetensors(entry()))
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        SafetensorsSource(tmp_path)


def test_no_weights_and_pickled_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no .safetensors file"):
        SafetensorsSource(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="pickled weights only"):
        SafetensorsSource(tmp_path)


def test_two_files_with_one_tensor(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors(entry()))
    with pytest.raises(ModelError, match="both hold 'w'"):
        SafetensorsSource(tmp_path)


def test_types_that_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(entry(dtype="F8_E4M3", shape=[64])))
    source = SafetensorsSource(tmp_path)
    with pytest.raises(ModelError, match="tensor 'w' is of type F8_E4M3"):
        source.read("w")


# --- config against weights ---------------------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary": (
        {"vocab_size": 71},
        "'model.embed_tokens.weight' has shape [70, 64], and the model's config makes it [71, 64]",
    ),
    "feed-forward": ({"intermediate_size": 95}, "'model.layers.0.mlp.gate_proj.weight' has shape [96, 64]"),
    "heads": ({"head_dim": 8}, "'model.layers.0.self_attn.q_proj.weight' has shape [64, 64]"),
    "layers": ({"num_hidden_layers": 3}, "lacks the tensor 'model.layers.2.input_layernorm.weight'"),
    "bias": ({"mlp_bias": True}, "lacks the tensor 'model.layers.0.mlp.gate_proj.bias'"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_config_that_contradicts_its_weights(case: str, tmp_path: Path) -> None:
    save(tmp_path)
    changes, message = CONTRADICTIONS[case]
    edit_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        open_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_head_that_is_missing(tmp_path: Path) -> None:
    save(tmp_path, "llama tied")
    edit_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ModelError, match="its config says that the head is not tied"):
        open_folder(tmp_path)


def test_tensors_that_would_be_left_out(tmp_path: Path) -> None:
    save(tmp_path, "llama biased")
    edit_config(tmp_path, mlp_bias=False)
    with pytest.raises(ModelError, match="'model.layers.0.mlp.down_proj.bias' is not part of llama"):
        open_folder(tmp_path)


def test_fewer_layers_by_override(tmp_path: Path) -> None:
    save(tmp_path)
    checkpoint = open_folder(tmp_path, json_model_override_args={"num_hidden_layers": 1})
    assert not checkpoint.has("model.layers.1.mlp.up_proj.weight")


def test_shapes_at_the_call(tmp_path: Path) -> None:
    save(tmp_path)
    checkpoint = open_folder(tmp_path)
    checkpoint.tensor("lm_head.weight", shape=(70, 64))
    checkpoint.vector("model.norm.weight", shape=(64,))
    with pytest.raises(ModelError, match=re.escape("has shape [70, 64], and the model's config makes it [70, 32]")):
        checkpoint.tensor("lm_head.weight", shape=(70, 32))
    with pytest.raises(ModelError, match="'model.norm.weight' has shape"):
        checkpoint.vector("model.norm.weight", shape=(65,))
    for read in (checkpoint.tensor, checkpoint.vector):
        with pytest.raises(ModelError, match="has no tensor 'model.nothing'"):
            read("model.nothing")


# --- options ------------------------------------------------------------------------------------------------------------------


def test_dtype(tmp_path: Path) -> None:
    theirs = save(tmp_path, dtype="bfloat16")
    for dtype, name in (("float32", "f32"), ("float16", "f16"), ("auto", "bf16")):
        checkpoint = open_folder(tmp_path, dtype=dtype)
        tensor = checkpoint.tensor("lm_head.weight")
        assert tensor.format == name and checkpoint.config.dtype == ("bfloat16" if dtype == "auto" else dtype)
        np.testing.assert_allclose(tensor.dequantize(), theirs["lm_head.weight"], rtol=1e-3, atol=1e-6)


def test_quantization(tmp_path: Path) -> None:
    theirs = save(tmp_path, dtype="bfloat16")
    inner, outer, norm = "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight"
    for name, formats, limit in (("int8", ("q8_0", "q8_0"), 0.02), ("int4", ("q4_1", "q8_0"), 0.25)):
        checkpoint = open_folder(tmp_path, quantization=name)
        assert (checkpoint.tensor(inner).format, checkpoint.tensor(outer).format) == formats
        assert np.abs(values(checkpoint, inner) - theirs[inner]).max() < limit
        np.testing.assert_array_equal(checkpoint.vector(norm), theirs[norm])


def test_quantization_by_pieces_does_not_show(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    save(tmp_path)
    edit_config(tmp_path, vocab_size=40000)  # two and a half pieces
    (tmp_path / "model.safetensors").unlink()
    whole = quantize_q8_0(name, values(open_folder(tmp_path, load_format="dummy"), name))
    pieces = open_folder(tmp_path, load_format="dummy", quantization="int8").tensor(name)
    np.testing.assert_array_equal(pieces.data, whole.data)


def test_quantization_leaves_rows_that_do_not_fit(tmp_path: Path) -> None:
    header = {
        "model.layers.0.a.weight": {"dtype": "F32", "shape": [8, 33], "data_offsets": [0, 1056]},
        "model.layers.0.b.weight": {"dtype": "F32", "shape": [8, 64], "data_offsets": [1056, 3104]},
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, np.ones(776, "<f4").tobytes()))
    source, conversion = SafetensorsSource(tmp_path), Conversion(None, "int4")
    assert conversion.apply(source.read("model.layers.0.a.weight")).format == "f32"
    assert conversion.apply(source.read("model.layers.0.b.weight")).format == "q4_1"


def test_context_length(tmp_path: Path) -> None:
    save(tmp_path)
    assert open_folder(tmp_path, context_length=100).config.context_len == 100
    assert open_folder(tmp_path).config.context_len == 128
    for wrong in (129, 0, -5):
        with pytest.raises(ModelError, match="not within 1 to 128, what the model was made for"):
            open_folder(tmp_path, context_length=wrong)


def test_read_config_needs_no_weights(tmp_path: Path) -> None:
    save(tmp_path)
    full = open_folder(tmp_path).config
    (tmp_path / "model.safetensors").unlink()
    assert read_config(resolve_model(str(tmp_path)), ModelOptions("x")) == full


# --- dummy --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_dummy_has_the_shapes_of_a_real_one(family: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, family, "bfloat16")
    (tmp_path / "model.safetensors").unlink()
    checkpoint = open_folder(tmp_path, load_format="dummy")
    assert set(checkpoint.names) == set(theirs) - ({"lm_head.weight"} if checkpoint.config.tie_word_embeddings else set())
    for name in checkpoint.names:
        assert checkpoint.tensor(name).shape == theirs[name].shape
        assert checkpoint.tensor(name).format == "bf16"
    assert (checkpoint.vector("model.norm.weight") == 1).all()
    up, down = (values(checkpoint, f"model.layers.0.mlp.{name}_proj.weight") for name in ("up", "down"))
    assert 0.015 < up.std() < 0.025 and not np.array_equal(up, down.T)


def test_dummy_seeds(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    name = "model.layers.0.mlp.up_proj.weight"
    one, same, other = (values(open_folder(tmp_path, load_format="dummy", random_seed=seed), name) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_dummy_larger_than_its_block(tmp_path: Path) -> None:
    save(tmp_path)
    edit_config(tmp_path, vocab_size=20000, hidden_size=128)
    (tmp_path / "model.safetensors").unlink()
    for dtype, name in (("auto", "f32"), ("float16", "f16")):
        checkpoint = open_folder(tmp_path, load_format="dummy", dtype=dtype)
        tensor = checkpoint.tensor("model.embed_tokens.weight")
        assert tensor.format == name and tensor.shape == (20000, 128)
        rows = tensor.dequantize()
        assert np.isfinite(rows).all() and len(np.unique(rows[:, :4], axis=0)) == 20000
    quantized = open_folder(tmp_path, load_format="dummy", quantization="int4").tensor("model.layers.0.mlp.up_proj.weight")
    assert quantized.format == "q4_1"


def test_dummy_and_no_weights_at_all(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="or use --load-format dummy"):
        open_folder(tmp_path)


# --- GGUF ---------------------------------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
GEMMA_NAMES = {
    **GGUF_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def interleaved(rows: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Rows of q or k as arch "llama" stores them: element j of the first half of a head, then of the second, and so on."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.stack([heads[:, 0], heads[:, 1]], axis=2).reshape(rows.shape)


def save_gguf(folder: Path, family: str, kind: str = "F32") -> tuple[Path, dict[str, np.ndarray[Any, Any]]]:
    """The family's random model as a GGUF file with matrices of `kind`; returns what its tensors should come out as."""
    gguf = pytest.importorskip("gguf")
    theirs = save(folder, family)
    config = json.loads((folder / "config.json").read_text())
    arch = family.split()[0]
    head_dim = config.get("head_dim") or 16
    names = GEMMA_NAMES if arch == "gemma3" else GGUF_NAMES
    writer = gguf.GGUFWriter(str(folder / "m.gguf"), arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    expected = {}
    for name, value in theirs.items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        stem, _, suffix = name.rpartition(".")
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", stem)
        full = f"blk.{layer.group(1)}.{names[layer.group(2)]}.{suffix}" if layer else f"{names[stem]}.{suffix}"
        if arch == "gemma3" and name.endswith("norm.weight"):
            value = value + np.float32(1)
        quant = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        data = gguf.quants.quantize(value, quant)
        expected[name] = gguf.quants.dequantize(data, quant)
        if arch == "llama" and re.search(r"[qk]_proj", name):
            data = interleaved(data, head_dim)
        writer.add_tensor(full, data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf", expected


def open_gguf(path: Path, **options: Any) -> Checkpoint:
    return load_checkpoint(resolve_model(str(path)), ModelOptions(str(path), **options))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral"])
def test_gguf_holds_what_was_written(family: str, kind: str, tmp_path: Path) -> None:
    path, expected = save_gguf(tmp_path, family, kind)
    checkpoint = open_gguf(path)
    assert set(checkpoint.names) == set(expected)
    for name, value in expected.items():
        tensor = checkpoint.tensor(name)
        assert tensor.format == (kind if value.ndim == 2 else "F32").lower() and tensor.name == name
        np.testing.assert_array_equal(tensor.dequantize(), value, name)
    norm = "model.layers.0.input_layernorm.weight"
    np.testing.assert_array_equal(checkpoint.vector(norm), expected[norm])  # gemma's offset is in the file


def test_interleaving_is_that_of_the_original_converters() -> None:
    """Their own words: reshape to (heads, 2, half, ...) and swap the two inner axes."""
    rows = np.arange(4 * 16 * 3).reshape(64, 3)
    np.testing.assert_array_equal(interleaved(rows, 16), rows.reshape(4, 2, 8, 3).swapaxes(1, 2).reshape(64, 3))


def test_gguf_config_and_folder_config_agree(tmp_path: Path) -> None:
    for number, family in enumerate(["llama biased", "qwen3", "gemma3"]):
        folder = tmp_path / str(number)
        path, _ = save_gguf(folder, family)
        ours, theirs = open_gguf(path).config, open_folder(folder).config
        same: dict[str, Any] = {
            "dtype": "",
            "eos_token_ids": (),
            "bos_token_id": None,
            "norm_eps": 0.0,
            "norm_offset": 0.0,
            "layout": PLAIN_LAYOUT,
        }
        if family == "gemma3":  # what save_gguf does not write
            same.update(sliding_window=0, windowed_layers=(), query_scale=None)
        assert replace(ours, **same) == replace(theirs, **same)


def test_gguf_quantization_only_makes_smaller(tmp_path: Path) -> None:
    path, _ = save_gguf(tmp_path, "llama", "Q4_0")
    name = "model.layers.0.mlp.up_proj.weight"
    assert open_gguf(path, quantization="int4").tensor(name).format == "q4_0"
    assert open_gguf(path, quantization="int8").tensor(name).format == "q4_0"
    assert open_gguf(path, dtype="float32").tensor(name).format == "q4_0"  # blocks stay: dtype is for dense tensors
    big, expected = save_gguf(tmp_path / "big", "llama", "Q8_0")
    tensor = open_gguf(big, quantization="int4").tensor(name)
    assert tensor.format == "q4_1"
    assert np.abs(tensor.dequantize() - expected[name]).max() < 0.3


def test_gguf_that_contradicts_itself(tmp_path: Path) -> None:
    path, _ = save_gguf(tmp_path, "llama")
    with pytest.raises(ModelError, match=re.escape("m.gguf: tensor 'model.layers.0.mlp.gate_proj.weight' has shape [96, 64]")):
        open_gguf(path, json_model_override_args={"intermediate_size": 64})
    with pytest.raises(ModelError, match="m.gguf lacks the tensor 'model.layers.2"):
        open_gguf(path, json_model_override_args={"num_hidden_layers": 3})


def test_load_format_that_does_not_fit(tmp_path: Path) -> None:
    path, _ = save_gguf(tmp_path, "llama")
    with pytest.raises(ModelError, match="--load-format safetensors does not fit .*m.gguf, which is a GGUF file"):
        open_gguf(path, load_format="safetensors")
    with pytest.raises(ModelError, match="--load-format gguf does not fit"):
        load_checkpoint(ModelFiles("folder", tmp_path, "x"), ModelOptions("x", load_format="gguf"))
    assert open_gguf(path, load_format="gguf").config.architecture == "llama"
    assert open_gguf(path, load_format="dummy").tensor("lm_head.weight").format == "f32"


# --- the default model --------------------------------------------------------------------------------------------------------


def test_default_model() -> None:
    """The real file: its config, and its tensors against the gguf package's reading of them."""
    gguf = pytest.importorskip("gguf")
    files = resolve_model(DEFAULT_MODEL)
    checkpoint = load_checkpoint(files, ModelOptions(DEFAULT_MODEL))
    config = checkpoint.config
    assert (config.num_layers, config.hidden_size, config.intermediate_size, config.head_dim) == (30, 576, 1536, 64)
    assert (config.num_heads, config.num_kv_heads, config.vocab_size, config.context_len) == (9, 3, 49152, 8192)
    assert config.rope == RopeConfig(100000.0, 64) and config.tie_word_embeddings and config.eos_token_ids == (2,)
    assert checkpoint.num_params == 134_515_008 and not checkpoint.has("lm_head.weight")
    formats = [checkpoint.tensor(name).format for name in checkpoint.names]
    assert (formats.count("q4_1"), formats.count("q8_0"), formats.count("f32")) == (210, 1, 61)
    stored = {t.name: t for t in gguf.GGUFReader(str(files.path)).tensors}
    for name, theirs in (("k_proj", "attn_k"), ("v_proj", "attn_v")):
        rows = gguf.quants.dequantize(stored[f"blk.7.{theirs}.weight"].data, gguf.GGMLQuantizationType.Q4_1)
        ours = values(checkpoint, f"model.layers.7.self_attn.{name}.weight")
        np.testing.assert_array_equal(interleaved(ours, 64) if name == "k_proj" else ours, rows)
