"""The default model against transformers on the dequantized weights, as the release promises: 20 prompts of 64 new tokens.

The oracle shares nothing with us: weights are read and dequantized by the `gguf` package and run by transformers. A few
prompts and tokens run always, all of them with `-m slow`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.resolve import DEFAULT_MODEL, ModelFiles, resolve_model
from sglang.srt.config import TextOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.server.tokenization.tokenizer import load_tokenizer
from tests.model.conftest import create_ops
from tests.model.tiny import Driver, open_worker

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.timeout(1800)  # a busy machine slows BLAS far more than its share

NEAR_TIE = 1e-3
TEXTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics state that",
    "To make a good cup of tea, first",
    "import numpy as np\n\ndef softmax(x):\n",
    "In 1969, the first humans landed on the Moon.",
    "Water boils at 100 degrees Celsius because",
    "SELECT name, age FROM users WHERE",
    "The quick brown fox jumps over the lazy dog. The dog",
    "Photosynthesis is the process by which plants",
    '{"name": "Alice", "age": 30, "city":',
    "A prime number is a number that",
    "Dear Sir or Madam,\n\nI am writing to",
    "The main difference between a list and a tuple in Python is",
    "Question: What is 12 times 12?\nAnswer:",
    "Shakespeare wrote many plays, among them",
    "for (int i = 0; i < n; i++) {\n",
    "The history of the Roman Empire begins",
    "My favourite season is autumn, because",
]


@pytest.fixture(scope="module", params=[(6, 16), pytest.param((20, 64), marks=pytest.mark.slow)], ids=["some", "all"])
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """(prompts, new tokens)"""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    try:
        return resolve_model(DEFAULT_MODEL, progress=False)
    except ModelError as error:
        pytest.skip(f"the default model cannot be fetched: {error}")


@pytest.fixture(scope="module")
def oracle(files: ModelFiles) -> Any:
    return load_oracle(files.path)


def load_oracle(path: Path) -> Any:
    """The default model in transformers, from the GGUF file at `path`."""
    gguf = pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).float().eval()
    model.load_state_dict(dict(_oracle_weights(gguf, path)), strict=False)
    model.tie_weights()
    return model


GGUF_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def _oracle_weights(gguf: Any, path: Path) -> Any:
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape([int(n) for n in tensor.shape][::-1])
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if match and match.group(2) in ("attn_q", "attn_k"):  # pairs of neighbours -> two halves
            values = values.reshape(-1, 32, 2, 576).swapaxes(1, 2).reshape(values.shape)
        name = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}.get(tensor.name)
        if match:
            name = f"model.layers.{match.group(1)}.{GGUF_NAMES[match.group(2)]}.weight"
        yield name, torch.from_numpy(np.array(values, np.float32))


@pytest.fixture(scope="module")
def prompts(files: ModelFiles) -> list[list[int]]:
    tokenizer = load_tokenizer(TextOptions(str(files.path)), files)
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def continuations(files: ModelFiles, prompts: list[list[int]], size: tuple[int, int]) -> list[list[int]]:
    """Greedy, by the reference kernels, all prompts together."""
    driver = Driver(open_worker(files.path, ReferenceOps(), max_total_tokens=4096))
    seqs = [driver.add(ids) for ids in prompts[: size[0]]]
    driver.generate(seqs, size[1])
    return [seq.output for seq in seqs]


@pytest.fixture(scope="module")
def oracle_logits(oracle: Any, prompts: list[list[int]], continuations: list[list[int]]) -> list[Any]:
    """Logits that chose each new token, [new tokens, vocab] a prompt, teacher-forced on our continuation."""
    result = []
    for prompt, output in zip(prompts, continuations, strict=False):
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt + output[:-1]])).logits[0].numpy()
        result.append(logits[len(prompt) - 1 :])
    return result


def test_reference_gives_the_same_greedy_tokens(
    continuations: list[list[int]], oracle_logits: list[Any], size: tuple[int, int]
) -> None:
    """At every position our token is the oracle's best, or the two are closer than NEAR_TIE."""
    assert len(continuations) == size[0]
    for output, logits in zip(continuations, oracle_logits, strict=True):
        assert len(output) == len(logits) == size[1]
        chosen = logits[np.arange(size[1]), output]
        assert (logits.max(axis=1) - chosen).max() < NEAR_TIE


def test_native_kernels_agree(
    files: ModelFiles,
    prompts: list[list[int]],
    continuations: list[list[int]],
    oracle_logits: list[Any],
    size: tuple[int, int],
) -> None:
    """int8 activations, teacher-forced: the best token agrees on 97 % of positions (a few may miss by one more) at a mean KL
    of at most 0.005."""
    driver = Driver(open_worker(files.path, create_ops("cpu"), max_total_tokens=4096))
    agree, divergence = [], []
    for prompt, output, theirs in zip(prompts, continuations, oracle_logits, strict=False):
        ids = prompt + output[:-1]
        ours = driver.logits([(driver.add(ids), len(ids))])[len(prompt) - 1 :]
        agree.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
        p, q = log_softmax(theirs), log_softmax(ours)
        divergence.append((np.exp(p) * (p - q)).sum(axis=1))
    print(f"top-1 {np.concatenate(agree).mean():.4f}, mean KL {np.concatenate(divergence).mean():.5f}")
    assert np.concatenate(agree).mean() >= (0.97 if size[0] == 20 else 0.95)
    assert np.concatenate(divergence).mean() <= 0.005


def log_softmax(x: Any) -> Any:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_batch_and_chunks_leave_the_bits_alone(kernels: str, files: ModelFiles, prompts: list[list[int]]) -> None:
    """Logits of one prompt whole; in chunks of 16 beside 15 others that extend or decode."""
    driver = Driver(open_worker(files.path, create_ops(kernels), max_total_tokens=4096))
    ids = [token for prompt in prompts for token in prompt][:40]
    alone = driver.logits([(driver.add(ids), 40)])
    others = [driver.add(p) for p in prompts[:15]]
    seq, start = driver.add(ids), 0
    for step, count in enumerate((16, 16, 8)):
        before = [(other, len(other.prompt) - 2 if step == 0 else 1) for other in others[:7]]
        after = [(other, 2) for other in others[7:]] if step < 1 else []
        logits = driver.logits([*before, (seq, count), *after])
        first = sum(n for _, n in before)
        block = logits[first : first + count]
        np.testing.assert_array_equal(block.view(np.int32), alone[start : start + count].view(np.int32))
        start += count
