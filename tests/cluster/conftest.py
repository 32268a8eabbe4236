"""Several tiny models behind one port, and a server of one of them, each in its own process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from sglang.common.server_process import end_process
from tests.conftest import START_SECONDS, RunningServer, spawn_server, start_server, wait_ready
from tests.server.models import CHATML, train_byte_level

SEED = ("--random-seed", "7", "--threads", "1")
CHAT = {"messages": [{"role": "user", "content": "a b c"}], "max_tokens": 12}


def make_model(folder: Path, seed: int) -> Path:
    """A random llama that speaks ChatML. It never ends by itself within the lengths of these tests."""
    folder.mkdir()
    tokenizer = train_byte_level()
    vocab, hidden, gated, kv, layers = tokenizer.get_vocab_size(), 64, 96, 32, 3
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6},
        **{"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": gated, "num_hidden_layers": layers},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "rope_theta": 10000.0},
        **{"tie_word_embeddings": False, "torch_dtype": "float32", "eos_token_id": tokenizer.token_to_id("<|im_end|>")},
    }
    shapes = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden), "model.norm": (hidden,)}
    for i in range(layers):
        for name, shape in {
            **{"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden)},
            **{"self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (gated, hidden), "mlp.up_proj": (gated, hidden)},
            **{"mlp.down_proj": (hidden, gated), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)},
        }.items():
            shapes[f"model.layers.{i}.{name}"] = shape
    rng = np.random.default_rng(seed)
    tensors = {
        f"{name}.weight": (
            rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2) + (len(shape) == 1)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(text))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(root / name, seed) for seed, name in enumerate(("alpha", "beta", "gamma"))}


def start_several(
    log: Path, *flags: str, environ: dict[str, str] | None = None, seconds: float = START_SECONDS
) -> RunningServer:
    """`sglang serve` with these flags; returns when it is ready."""
    server = spawn_server(log, *flags, environ=environ)
    own = "ready to roll"  # alpha's own log is in it, too
    return wait_ready(
        server, lambda text: any(own in line and not line.startswith("[alpha") for line in text.splitlines()), seconds
    )


@pytest.fixture(scope="session")
def several(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """alpha and beta at most in memory of alpha, beta, gamma."""
    named = [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    log = tmp_path_factory.mktemp("several") / "log"
    server = start_several(log, *named, "--max-loaded", "2", "--enable-metrics", *SEED)
    yield server
    end_process(server.process, 30)


@pytest.fixture(scope="session")
def alone(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """alpha, without anything in front."""
    log = tmp_path_factory.mktemp("alone") / "log"
    server = start_server(log, "--served-model-name", "alpha", *SEED, model=str(models["alpha"]))
    yield server
    server.stop()


@pytest.fixture()
def http(several: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=several.url, timeout=120, trust_env=False) as client:
        yield client
