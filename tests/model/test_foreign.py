"""Decoders that transformers computes, with our attention and KV pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import MemoryOptions, ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.foreign import checkpoint as foreign
from sglang.srt.model.foreign.checkpoint import ForeignCheckpoint
from sglang.srt.model.foreign.choice import open_model
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.worker import worker_from
from tests.model.conftest import create_ops
from tests.model.test_dense_families import OTHERS, PROMPT, logits_of
from tests.model.tiny import SIZES, Driver, randomize

torch = pytest.importorskip("torch")

WINDOWS = {"sliding_window": 21, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "Phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 2},
    "Olmo": {"clip_qkv": 2.0},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64, "num_key_value_heads": 4},
    "Cwm": {"head_dim": 16, **WINDOWS},
    "VaultGemma": {"head_dim": 24, "attn_logit_softcapping": 2.5, "final_logit_softcapping": 3.0, **WINDOWS},
    "Llama": {"head_dim": 24},
}
"""The last has a class of ours"""


def save(folder: Path, family: str, **more: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**SIZES, "pad_token_id": 0, **FAMILIES.get(family, {}), **more})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    model.set_attn_implementation("eager")
    randomize(model)
    model.save_pretrained(folder)
    return model


def open_driver(folder: Path, ops: Any, impl: Any = "auto") -> Driver:
    options = ModelOptions(str(folder), model_impl=impl)
    found = open_model(resolve_model(str(folder)), options)
    assert isinstance(found, ForeignCheckpoint)
    memory = MemoryOptions(max_total_tokens=1024, max_running_requests=8, chunked_prefill_size=300)
    return Driver(worker_from(found, found.config, ops, memory))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    """Whole, in chunks, and in a batch with others, on both op sets."""
    model = save(tmp_path, family)
    prompt = PROMPT[:60]
    with torch.no_grad():
        theirs = model(torch.tensor([prompt])).logits[0].numpy()
    impl = "transformers" if family == "Llama" else "auto"
    driver = open_driver(tmp_path, ReferenceOps(), impl)
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(logits_of(driver, prompt), theirs, atol=1e-4 * scale, rtol=1e-4)
    np.testing.assert_allclose(logits_of(driver, prompt, chunk=16), theirs, atol=1e-4 * scale, rtol=1e-4)
    native = open_driver(tmp_path, create_ops("cpu"), impl)
    seq, others = native.add(prompt), [native.add(ids) for ids in OTHERS]
    together = native.logits([(others[0], 1), (seq, len(prompt)), (others[2], 33)])[1 : 1 + len(prompt)]
    error = np.abs(together - theirs) / scale
    assert error.mean() < 1e-3 and error.max() < 1e-2  # K and V are kept in 16 bits
    assert native.worker.info.deterministic is False and "transformers" in native.worker.info.implementation


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("Lfm2", {"block_ff_dim": 64, "layer_types": ["conv", "full_attention", "conv"]}, "layers of the kinds conv"),
        ("Mamba", {"state_size": 4}, "state besides K and V|not exchangeable"),
        ("Bloom", {"n_layer": 2, "n_head": 4}, "not exchangeable"),
    ],
)
def test_what_keeps_more_than_k_and_v_is_refused(family: str, more: dict[str, Any], why: str, tmp_path: Path) -> None:
    save(tmp_path, family, **more)
    with pytest.raises(ModelError, match=why):
        open_driver(tmp_path, ReferenceOps(), "transformers")


def test_heads_of_v_with_another_width_are_refused(tmp_path: Path) -> None:
    widths = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
    save(tmp_path, "DeepseekV2", **widths, first_k_dense_replace=3)
    with pytest.raises(ModelError, match="heads of q, k and v are"):
        open_driver(tmp_path, ReferenceOps(), "transformers")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path, "Phi")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the tensor 'model.layers.1.self_attn.q_proj.weight'"):
        open_driver(tmp_path, ReferenceOps())


def test_without_torch_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["PhiForCausalLM"], "model_type": "phi"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("sglang.srt.model.foreign.choice.is_installed", lambda: False)
    monkeypatch.setattr(foreign, "is_installed", lambda: False)
    for impl in ("auto", "transformers"):
        with pytest.raises(ModelError, match=r"pip install .*\btransformers\b"):
            open_model(resolve_model(str(tmp_path)), ModelOptions(str(tmp_path), model_impl=impl))


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    save(tmp_path, "Phi")
    raw = json.loads((tmp_path / "config.json").read_text())
    raw |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "mine.py").write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').write_text('')\n")
    for impl in ("auto", "transformers"):
        with pytest.raises(ModelError, match="MineForCausalLM|transformers cannot read"):
            open_model(resolve_model(str(tmp_path)), ModelOptions(str(tmp_path), model_impl=impl))
    assert not (tmp_path / "mine.ran").exists()


def test_an_engine_with_caches_and_chunks(tmp_path: Path) -> None:
    """The scheduler, the prefix cache and chunked prefill around it: greedy tokens are those of transformers."""
    import sglang as sgl

    model = save(tmp_path, "Phi")
    ids = PROMPT[:50]
    expected = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)[0, 50:].tolist()
    engine = sgl.Engine(
        model_path=str(tmp_path), skip_tokenizer_init=True, chunked_prefill_size=16, max_total_tokens=512, device="cpu"
    )
    try:
        sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
        first, again = (engine.generate(input_ids=ids, sampling_params=sampling) for _ in range(2))
        assert first["output_ids"] == again["output_ids"] == expected
        assert again["meta_info"]["cached_tokens"] >= 32 and first["meta_info"]["cached_tokens"] == 0
    finally:
        engine.shutdown()
