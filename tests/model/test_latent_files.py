"""Latent attention (DeepSeek, GLM-4.7-Flash): files of llama.cpp in both of their forms, ranks, the prefix cache, and configs at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.distributed.leader import create_parallel_worker
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.weights.config_reader import read_model_config
from sglang.srt.model.worker import create_worker
from tests.model.conftest import create_ops
from tests.model.dense_families import save_family
from tests.model.test_dense_families import PROMPT, logits_of
from tests.model.test_expert_files import by_matrix
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

MEMORY = MemoryOptions(max_total_tokens=1024, max_running_requests=8, chunked_prefill_size=64)
FAMILIES = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
CASES = [(name, i, split) for name in FAMILIES for i in (0, 1) for split in (True, False) if (name, i) != ("deepseek_v3", 1)]
"""files cannot say that the pairs that rotate are no neighbours, as in the last"""


def save_gguf(path: Path, name: str, model: Any, split: bool) -> None:
    """As llama.cpp's converter writes it; without `split` as it did before it had the form of K's and V's matrices that is multiplied."""
    c = model.config
    writer = gguf.GGUFWriter(str(path), "deepseek2")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(c.qk_rope_head_dim)
    writer.add_kv_lora_rank(c.kv_lora_rank)
    if c.q_lora_rank is not None:
        writer.add_q_lora_rank(c.q_lora_rank)
    key, value = c.qk_nope_head_dim + c.qk_rope_head_dim, c.v_head_dim
    writer.add_head_count_kv(1 if split else c.num_attention_heads)
    writer.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim if split else key)
    writer.add_value_length(c.kv_lora_rank if split else value)
    if split:
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(value)
    write_rope(writer, c)
    write_experts(writer, name, c)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, c.num_hidden_layers)
    for key_, tensor in by_matrix({k: v.numpy() for k, v in model.state_dict().items()}).items():
        if key_ == "lm_head.weight" and c.tie_word_embeddings:
            continue
        parts = {key_: tensor}
        if split and "kv_b_proj" in key_:
            both = tensor.reshape(c.num_attention_heads, -1, c.kv_lora_rank)
            k, v = both[:, : c.qk_nope_head_dim], both[:, c.qk_nope_head_dim :]
            parts = {key_.replace("kv_b_proj", "k_b_proj"): k.swapaxes(1, 2), key_.replace("kv_b_proj", "v_b_proj"): v}
        for part, values in parts.items():
            stored = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert stored is not None, part
            writer.add_tensor(stored, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_rope(writer: Any, config: Any) -> None:
    params = config.rope_parameters
    writer.add_rope_freq_base(params["rope_theta"])
    if params["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(params["factor"])
        writer.add_rope_scaling_orig_ctx_len(params["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * params["mscale_all_dim"])


def write_experts(writer: Any, name: str, config: Any) -> None:
    is_v3 = name != "deepseek_v2"
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    if is_v3:
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if (config.n_group or 1) > 1:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


@pytest.mark.parametrize(("family", "setting", "split"), CASES)
def test_a_gguf_file_has_the_same_logits(family: str, setting: int, split: bool, tmp_path: Path) -> None:
    """Of DeepSeek-V2's two factors of yarn the file has one, and llama.cpp has no biases there."""
    more: dict[str, Any] = {"attention_bias": False}
    if (family, setting) == ("deepseek_v2", 0):
        more["rope_parameters"] = {
            "rope_type": "yarn",
            "rope_theta": 5e5,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        }
    model = save_family(tmp_path, family, setting, **more)
    save_gguf(tmp_path / "m.gguf", family, model, split)
    with torch.no_grad():
        theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
    ours = logits_of(Driver(open_worker(tmp_path / "m.gguf", ReferenceOps())), PROMPT)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max(), rtol=2e-4)


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_two_ranks_say_what_one_says(family: str, tmp_path: Path) -> None:
    """Heads are cut, the row that they share is on both."""
    save_family(tmp_path, family)
    prompts = [PROMPT[:20], PROMPT[20:41]]

    def tokens(worker: Any) -> list[list[int]]:
        driver = Driver(worker)
        seqs = [driver.add(prompt) for prompt in prompts]
        driver.generate(seqs, 8, chunk=16)
        return [seq.output for seq in seqs]

    alone = create_worker(ModelOptions(str(tmp_path)), DeviceOptions(threads=1), MEMORY)
    worker = create_parallel_worker(ModelOptions(str(tmp_path)), DeviceOptions(tp_size=2, threads=1), MEMORY)
    try:
        assert worker.info.kv_bytes_per_token == alone.info.kv_bytes_per_token
        assert tokens(worker) == tokens(alone)
    finally:
        worker.close()


def test_a_token_takes_two_rows_of_the_pool(tmp_path: Path) -> None:
    model = save_family(tmp_path, "deepseek_v3")
    worker = open_worker(tmp_path, create_ops("cpu"))
    width = -(-(model.config.kv_lora_rank + model.config.qk_rope_head_dim) // 16) * 16
    assert worker.info.kv_bytes_per_token == model.config.num_hidden_layers * 2 * width * 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kv_lora_rank": 0}, "kv_lora_rank"),
        ({"kv_lora_rank": 33}, "even"),
        ({"kv_lora_rank": None}, "kv_a_proj"),
        ({"qk_rope_head_dim": 15}, "even"),
        ({"qk_nope_head_dim": "8"}, "qk_nope_head_dim"),
        ({"v_head_dim": -1}, "v_head_dim"),
        ({"v_head_dim": 21}, "kv_b_proj"),
        ({"q_lora_rank": 1.5}, "q_lora_rank"),
        ({"q_lora_rank": 1 << 40}, "at most"),
        ({"topk_group": 5}, "topk_group"),
        ({"n_group": 3}, "n_group"),
        ({"topk_method": "greedy"}, "noaux_tc"),
        ({"scoring_func": "softmax"}, "sigmoid"),
        ({"kv_lora_rank": 1 << 30}, "at most"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace"),
    ],
)
def test_configs_at_fault(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    save_family(tmp_path, "deepseek_v3")
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**raw, **change}.items() if value is not None}))
    with pytest.raises(ModelError, match=match):
        open_worker(tmp_path, ReferenceOps())


def test_what_yarn_does_to_scores(tmp_path: Path) -> None:
    save_family(tmp_path, "deepseek_v2")
    config = read_model_config(tmp_path, {})
    stretch = 0.1 * 1.3 * np.log(4.0) + 1
    assert config.query_scale == pytest.approx(40**-0.5 * stretch**2)
    assert (config.num_kv_heads, config.head_dim) == (1, 48)
