"""Every value of a model's config, headers and metadata changed to what no model has: it loads, or says in a sentence why not."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.errors import ConfigError, ModelError
from sglang.srt.model.worker import create_worker
from tests.model import dense_families, expert_families, recurrent_families
from tests.model.dense_families import save_family
from tests.model.hostile import damaged, dump, gguf_bytes, gguf_mutations, mutations, outcome, tiny_gguf, try_file
from tests.model.quantized import FORMS, save_quantized
from tests.model.tiny import save_model
from tests.model.vision import randomize, save_qwen
from tests.model.vision_families import gemma4, glm4v, internvl, llava, llava_next, mistral3, pixtral

ALSO = (
    *(
        "rope_scaling",
        "quantization_config",
        "sliding_window",
        "layer_types",
        "head_dim",
        "partial_rotary_factor",
        "torch_dtype",
    ),
    *("use_sliding_window", "max_window_layers", "rope_theta", "attention_bias", "mlp_bias", "tie_word_embeddings"),
)
SEEING: dict[str, Callable[[], Any]] = {
    "LLaVA": llava,
    "LLaVA-NeXT": llava_next,
    "Pixtral": pixtral,
    "Mistral 3": mistral3,
    "InternVL": internvl,
    "GLM-4V": glm4v,
    "Gemma 4": gemma4,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "gptq", "w8a8", "fp8 tiles", "Qwen2VL", "Qwen2_5_VL", *SEEING)


def save(folder: Path, family: str) -> None:
    if family in FORMS:
        pack, config, _ = FORMS[family]
        save_quantized(folder, pack, config)
    elif family in SEEING:
        randomize(SEEING[family](), 0).save_pretrained(folder)
    elif "VL" in family:
        save_qwen(folder, family)
    else:
        save_model(folder, family)


def load(path: Path, kernels: Any = "cpu", **options: Any) -> None:
    """The whole model, and a tape of its ops."""
    device = DeviceOptions(device="cpu", kernels=kernels, threads=1)
    limits = MemoryOptions(max_total_tokens=512, max_running_requests=4, chunked_prefill_size=32)
    worker = create_worker(ModelOptions(str(path), **options), device, limits)
    worker.bind(np.zeros((worker.info.max_running_requests, worker.info.context_len), np.int32))


def some(cases: Iterator[tuple[str, Any]], share: float, seed: int = 0) -> Iterator[tuple[str, Any]]:
    rng = random.Random(seed)
    return (case for case in cases if rng.random() < share)


def fuzz_config(folder: Path, family: str, share: float) -> None:
    save(folder, family)
    load(folder)
    path = folder / "config.json"
    cases = some(mutations(json.loads(path.read_text()), ALSO), share)
    assert not try_file(path, ((name, dump(value)) for name, value in cases), lambda: load(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_configs(tmp_path: Path, family: str) -> None:
    fuzz_config(tmp_path, family, 0.04)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_configs(tmp_path: Path, family: str) -> None:
    fuzz_config(tmp_path, family, 1.0)


IMPOSSIBLE: dict[str, tuple[str, dict[str, Any]]] = {
    "a limit beyond all numbers": ("bamba", {"time_step_limit": [0.0, 10**400]}),
    "a limit beyond float32": ("bamba", {"time_step_limit": [1e300, 1e308]}),
    "no limit at all": ("granite_hybrid", {"time_step_limit": [0.0, float("nan")]}),
    "a layer that is a number": ("gemma4_experts", {"per_layer_config": {"1": 3}}),
    "a layer that is a list": ("gemma4_experts", {"per_layer_config": {"1": [], "3": [1.5]}}),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_no_model_of_a_family_has(tmp_path: Path, case: str) -> None:
    family, values = IMPOSSIBLE[case]
    save_family(tmp_path, family)
    path = tmp_path / "config.json"
    path.write_bytes(dump(json.loads(path.read_text()) | values))
    with pytest.raises(ModelError, match=next(iter(values))):
        load(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", [*dense_families.ROWS, *expert_families.ROWS, *recurrent_families.ROWS])
def test_configs_of_every_family(tmp_path: Path, family: str) -> None:
    save_family(tmp_path, family)
    path = tmp_path / "config.json"
    cases = some(mutations(json.loads(path.read_text())), 0.2)
    cases = (case for case in cases if not case[0].startswith("architectures"))  # transformers computes some of these
    assert not try_file(path, ((name, dump(value)) for name, value in cases), lambda: load(tmp_path))


@pytest.mark.parametrize("share", [0.15, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_gguf_metadata(tmp_path: Path, arch: str, share: float) -> None:
    path = tmp_path / "m.gguf"
    keys, tensors = tiny_gguf(arch)
    assert not try_file(path, some(gguf_mutations(keys, tensors), share), lambda: load(path))


COUNT = [60, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.mark.parametrize("count", COUNT)
def test_damaged_gguf(tmp_path: Path, count: int) -> None:
    path, data = tmp_path / "m.gguf", gguf_bytes(*tiny_gguf())
    head = data.index(b"blk.0") + 1500
    assert not try_file(path, damaged(data, head, count), lambda: load(path))


@pytest.mark.parametrize("count", COUNT)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_files(tmp_path: Path, name: str, count: int) -> None:
    save_model(tmp_path, "llama")
    data = (tmp_path / name).read_bytes()
    head = min(len(data), 8 + int.from_bytes(data[:8], "little"))
    assert not try_file(tmp_path / name, damaged(data, head, count), lambda: load(tmp_path))


def safetensors(header: Any, data: bytes, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


@pytest.mark.parametrize("share", [0.02, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_safetensors_headers(tmp_path: Path, share: float) -> None:
    save_model(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    cases = some(mutations(header), share)
    assert not try_file(path, ((name, safetensors(value, data)) for name, value in cases), lambda: load(tmp_path))


HEADERS: dict[str, tuple[Callable[[dict[str, Any], bytes], bytes], str]] = {
    "length": (lambda h, d: safetensors(h, d, 2**63), "its header should have 9223372036854775808 bytes"),
    "long": (lambda h, d: safetensors(b" " * (33 << 20), d), "longer than any real one"),
    "twice": (lambda h, d: safetensors(b'{"a":{"dtype":"F32"},"a":{}}', d), "'a' occurs twice"),
    "overlap": (
        lambda h, d: safetensors(h | {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, d), "overlap"),
    "outside": (
        lambda h, d: safetensors(h | {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, d), "truncated"),
    "product": (
        lambda h, d: safetensors(h | {"x": {"dtype": "F32", "shape": [2**62] * 8, "data_offsets": [0, 0]}}, d), "cannot take 0 bytes"),
    "dimensions": (
        lambda h, d: safetensors(h | {"x": {"dtype": "F32", "shape": [1] * 10**5, "data_offsets": [0, 4]}}, d), "proper dtype, shape"),
    "deep": (lambda h, d: safetensors(b"[" * 100_000, d), "is not JSON"),
    "cut": (lambda h, d: safetensors(h, d)[:1000], "its header should have"),
    "no data": (lambda h, d: safetensors(h, b""), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_headers(tmp_path: Path, case: str) -> None:
    save_model(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    make, message = HEADERS[case]
    path.write_bytes(make(json.loads(raw[8 : 8 + size]), raw[8 + size :]))
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "..", "", "a\0.safetensors", "x.bin", 7, None, ["a"], "gone.safetensors"]
)
def test_an_index_names_files_of_its_own_folder(tmp_path: Path, file: Any) -> None:
    save_model(tmp_path, "llama")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    with pytest.raises(ModelError, match=r"which is not a \.safetensors file in the same folder|lacks 1 of 1 shards"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device", "huge", "empty", "not text"])
def test_what_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    save_model(tmp_path, "llama")
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("loop", "device"):
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    else:
        path.write_bytes({"empty": b"", "not text": b"\xff\xfe{\0}\0"}.get(kind, b" " * 8))
        if kind == "huge":
            os.truncate(path, 1 << 40)  # a hole
    assert outcome(lambda: load(tmp_path)) is None
    if (name, kind) != ("generation_config.json", "loop"):  # a link to nowhere counts as no file
        with pytest.raises(ModelError, match=name.split(".")[0]):
            load(tmp_path)


# --- what the kernels can do ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [8, 24, 40, 72, 100])
def test_any_head_dim_loads(tmp_path: Path, head_dim: int) -> None:
    save_model(tmp_path, "llama", head_dim=head_dim)
    load(tmp_path)


LARGE: dict[str, tuple[dict[str, Any], str]] = {
    "head_dim": ({"head_dim": 2048}, "head_dim 2048 is more than 1024"),
    "group": ({"num_attention_heads": 512, "num_key_value_heads": 1, "head_dim": 16}, "512 query heads share a KV head"),
    "weights": (
        {"hidden_size": 1 << 19, "intermediate_size": 1 << 20, "num_hidden_layers": 64},
        "GiB for weights, .* smaller model",
    ),
    "layers": ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers must be at most 4096"),
    "context": ({"max_position_embeddings": 1 << 28}, "tables of 268435456 tokens of context.*--context-length"),
    "width": (
        {"hidden_size": 1 << 21, "num_hidden_layers": 1, "intermediate_size": 32, "head_dim": 16},
        "hidden_size 2097152 is more than",
    ),
    "rows": ({"num_attention_heads": 1 << 20, "head_dim": 1024}, "rows of .* values for q, k and v"),
}


@pytest.mark.parametrize("case", LARGE)
def test_sizes_are_checked_before_anything_is_allocated(tmp_path: Path, case: str) -> None:
    changes, message = LARGE[case]
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "max_position_embeddings": 128}
    if case in ("group", "rows"):
        changes = {"num_key_value_heads": 1} | changes
    config = {"architectures": ["LlamaForCausalLM"], **sizes, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, load_format="dummy")


def test_a_gguf_file_that_claims_many_blocks(tmp_path: Path) -> None:
    keys, tensors = tiny_gguf()
    path = tmp_path / "m.gguf"
    for claimed in (2**31 - 1, 4000):
        path.write_bytes(gguf_bytes(keys | {"llama.block_count": (4, claimed)}, tensors))
        with pytest.raises(ModelError, match=r"block_count must be at most 4096|lacks the tensor 'model.layers.2"):
            load(path)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "Qwen2_5_VL", "gemma3"])
@pytest.mark.parametrize(
    "kinds", ["full_attention", ["full_attention"], ["nonsense"] * 64, ["sliding_attention"] * 64, [1] * 64]
)
def test_layer_types_are_checked_where_no_layer_has_a_window(tmp_path: Path, family: str, kinds: Any) -> None:
    """Also those that contradict it."""
    save(tmp_path, family)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    text |= {"sliding_window": None, "use_sliding_window": False, "layer_types": kinds}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="layer_types"):
        load(tmp_path, "reference")
