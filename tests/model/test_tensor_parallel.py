"""Two real processes that share a model: the same tokens as one, in every form of weights, and an end for all when one dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.engine import Engine
from sglang.srt.errors import ConfigError, EngineDeadError
from sglang.srt.model.distributed.leader import ParallelWorker, create_parallel_worker
from sglang.srt.model.distributed.sharding import shard_model
from sglang.srt.model.distributed.wire import TableDiff, decode, encode, pack_step, unpack_step
from sglang.srt.model.weights.config_reader import read_model_config
from sglang.srt.model.worker import create_worker
from tests.model.dense_families import save_family
from tests.model.test_cuda_runtime import SAMPLING, answers, generate, need_interpreter
from tests.model.test_quantized_checkpoints import FORMS, save_quantized
from tests.model.tiny import Driver, save_model

torch = pytest.importorskip("torch")

MEMORY = MemoryOptions(max_total_tokens=1024, max_running_requests=8, chunked_prefill_size=64)
PROMPTS = [[int(i) for i in np.random.default_rng(s).integers(3, 199, 20 + s)] for s in range(3)]
RANKS = DeviceOptions(tp_size=2, threads=1)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama biased": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "qwen3 shared KV head": ("qwen3", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma3": ("gemma3", {"head_dim": 32, "sliding_window": 16, "final_logit_softcapping": 3.0}),
    "experts": ("qwen2_moe", {"moe_intermediate_size": 64}),
}


@contextlib.contextmanager
def ranks(folder: Path, device: DeviceOptions = RANKS, **model: Any) -> Iterator[ParallelWorker]:
    worker = create_parallel_worker(ModelOptions(str(folder), **model), device, MEMORY)
    try:
        yield worker
    finally:
        worker.close()


def tokens(worker: Any) -> list[list[int]]:
    driver = Driver(worker)
    seqs = [driver.add(prompt) for prompt in PROMPTS]
    driver.generate(seqs, 10, chunk=16)
    return [seq.output for seq in seqs]


def tokens_and_scores(worker: Any) -> tuple[list[list[int]], Any]:
    driver = Driver(worker)
    seqs = [driver.add(prompt) for prompt in PROMPTS]
    driver.generate(seqs, 10, chunk=16)
    scored = driver.add(PROMPTS[0])
    result = driver.step([(scored, len(PROMPTS[0]))], prompt_from=1, top_num=2).prompt_logprobs[0]
    return [seq.output for seq in seqs], result


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_say_what_one_says(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    (save_family if family == "qwen2_moe" else save_model)(tmp_path, family, **changes)
    alone = create_worker(ModelOptions(str(tmp_path)), DeviceOptions(threads=1), MEMORY)
    expected, scores = tokens_and_scores(alone)
    with ranks(tmp_path) as worker:
        assert worker.info.tp_size == 2 and worker.info.vocab_size == 199
        if case != "qwen3 shared KV head":
            assert worker.info.kv_bytes_per_token * 2 == alone.info.kv_bytes_per_token
        outputs, ours = tokens_and_scores(worker)
    assert outputs == expected
    np.testing.assert_allclose(ours.logprobs, scores.logprobs, atol=1e-3)
    np.testing.assert_array_equal(ours.top_ids, scores.top_ids)


def test_quantized_parts(tmp_path: Path) -> None:
    save_quantized(tmp_path, *FORMS["awq"][:2])
    expected = tokens(create_worker(ModelOptions(str(tmp_path)), DeviceOptions(kernels="reference"), MEMORY))
    with ranks(tmp_path, DeviceOptions(kernels="reference", tp_size=2)) as worker:
        assert worker.info.quantization == "awq"
        assert tokens(worker) == expected


def test_results_are_batch_invariant(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    with ranks(tmp_path) as worker:
        assert worker.info.deterministic
        driver = Driver(worker)
        together = [driver.add(prompt) for prompt in PROMPTS]
        driver.generate(together, 6)
        alone = driver.add(PROMPTS[1])
        driver.generate([alone], 6, chunk=7)
        assert alone.output == together[1].output


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (3, {}, "does not divide the model's 4 attention heads"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6, "hidden_size": 96}, "one must divide the other"),
        (4, {"intermediate_size": 98}, "does not divide the model's intermediate size"),
    ],
)
def test_models_that_cannot_be_cut(size: int, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    class Size:
        def __init__(self) -> None:
            self.size, self.rank = size, 0

    save_model(tmp_path, "llama", **changes)
    with pytest.raises(ConfigError, match=message):
        shard_model(read_model_config(tmp_path, {}), Size())  # type: ignore[arg-type]


def test_ids_that_only_rank_0_has_sampled(tmp_path: Path) -> None:
    """Steps that begin before the host knows the tokens of those before them: ids go from device to device."""
    save_model(tmp_path, "qwen2")
    alone = create_worker(ModelOptions(str(tmp_path)), DeviceOptions(kernels="reference"), MEMORY)
    expected = generate(alone, ahead=False)
    with ranks(tmp_path, DeviceOptions(kernels="reference", tp_size=2)) as worker:
        assert generate(worker, ahead=True) == expected


def test_two_ranks_run_ahead_and_replay_graphs(tmp_path: Path) -> None:
    """The engine with CUDA's op set in Triton's interpreter, where a graph is the calls themselves."""
    need_interpreter()
    save_model(tmp_path, "qwen2", num_hidden_layers=1)
    expected, _ = answers(tmp_path, SAMPLING, kernels="reference")
    ours, info = answers(tmp_path, SAMPLING, kernels="cuda", dtype="float32", cuda_graph_max_bs=3, tp_size=2)
    assert ours == expected
    assert info["tp_size"] == 2 and info["runs_ahead"] and info["graph_max_reqs"] == 3


def test_what_is_wrong_with_the_model_is_said_once(tmp_path: Path) -> None:
    """Blocks of 32 values cannot be cut at 48: all ranks find out, and the start fails with one sentence."""
    save_model(tmp_path, "llama", intermediate_size=96)
    with pytest.raises(ConfigError, match="cut its blocks"), ranks(tmp_path, quantization="int8"):
        pass


def test_a_dead_rank_fails_the_next_step(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    died: list[str] = []
    worker = create_parallel_worker(ModelOptions(str(tmp_path)), RANKS, MEMORY, died.append)
    try:
        tokens(worker)
        os.kill(worker.followers.pids[0], signal.SIGKILL)
        while not died:
            time.sleep(0.01)
        assert "rank 1 of the model died" in died[0]
        with pytest.raises(EngineDeadError, match="rank 1"):
            tokens(worker)
    finally:
        worker.close()


def test_the_wire_brings_what_was_sent(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    driver = Driver(create_worker(ModelOptions(str(tmp_path)), DeviceOptions(kernels="reference"), MEMORY))
    diff, copy = TableDiff(driver.table), np.zeros_like(driver.table)
    seqs = [driver.add(prompt) for prompt in PROMPTS]
    for count in (12, 1, 4):
        batch = driver.batch([(seq, count) for seq in seqs], prompt_from=1, top_num=1, token_ids=(5,))
        batch.previous = np.full(batch.num_tokens, count, np.int32)
        sent = encode(pack_step(batch, diff.changes(batch.req_pool_idx, batch.seq_lens), np.asarray))
        step = decode(sent)
        got = unpack_step(step, copy, 64, np.asarray)  # type: ignore[arg-type]
        for name in ("input_ids", "positions", "out_cache_loc", "q_start", "q_len", "seq_lens", "sample_rows", "previous"):
            np.testing.assert_array_equal(getattr(got, name), getattr(batch, name))
        for row, length in zip(batch.req_pool_idx, batch.seq_lens, strict=True):
            np.testing.assert_array_equal(copy[row, :length], driver.table[row, :length])
        assert [p.token_ids for p in got.prompt_logprobs] == [(5,)] * 3
    assert not diff.changes(batch.req_pool_idx, batch.seq_lens)


def test_engine_on_two_ranks(tmp_path: Path) -> None:
    save_model(tmp_path, "llama")
    flags = {"model_path": str(tmp_path), "skip_tokenizer_init": True, "grammar_backend": "none", "max_total_tokens": 1024}
    greedy = {"temperature": 0, "max_new_tokens": 8}
    with Engine(**flags, threads=1) as engine:
        expected = [reply["output_ids"] for reply in engine.generate(input_ids=PROMPTS, sampling_params=greedy)]
    with Engine(**flags, threads=1, tp_size=2) as engine:
        assert [reply["output_ids"] for reply in engine.generate(input_ids=PROMPTS, sampling_params=greedy)] == expected
        assert engine.get_server_info()["tp_size"] == 2


@pytest.mark.slow
def test_server_lives_through_the_death_of_a_rank(tmp_path: Path) -> None:
    from sglang.utils import launch_server_cmd, terminate_process, wait_for_server

    save_model(tmp_path, "llama")
    process, port = launch_server_cmd(
        f"python3 -m sglang.launch_server --model-path {tmp_path} --skip-tokenizer-init --grammar-backend none --tp-size 2 --threads 1"
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(url, timeout=120)
        body = {"input_ids": PROMPTS[0], "sampling_params": {"temperature": 0, "max_new_tokens": 8}}
        first = httpx.post(f"{url}/generate", json=body, timeout=60).json()["output_ids"]
        assert httpx.get(f"{url}/get_server_info").json()["tp_size"] == 2
        for victim in ("sglang.srt.model.distributed.follower", "sglang.srt.process.scheduler_process"):
            before = _children(process.pid)
            assert len(before) == 2, "a scheduler and one more rank"
            before[victim].kill()
            deadline = time.monotonic() + 120
            while any(_lives(p) for p in before.values()):
                assert time.monotonic() < deadline, "a rank outlives the others"
                time.sleep(0.05)
            while httpx.get(f"{url}/health").status_code != 200 or len(_children(process.pid)) < 2:
                assert time.monotonic() < deadline, "the server does not come back"
                time.sleep(0.05)
            assert httpx.post(f"{url}/generate", json=body, timeout=60).json()["output_ids"] == first
        last = _children(process.pid)
    finally:
        terminate_process(process)
    deadline = time.monotonic() + 30
    while any(_lives(p) for p in last.values()):
        assert time.monotonic() < deadline, "a rank outlives the server"
        time.sleep(0.05)


def _lives(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != "zombie")
    except psutil.NoSuchProcess:
        return False


def _children(pid: int) -> dict[str, Any]:
    """The living processes of a server by their module."""
    import psutil

    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = process.cmdline()
            if "-m" in line and line[line.index("-m") + 1].startswith("sglang.srt."):
                found[line[line.index("-m") + 1]] = process
    return found


@pytest.mark.parametrize(("family", "setting"), [("olmo2", 0), ("cohere", 1), ("gpt2", 0)])
def test_families_that_run_on_one_rank(family: str, setting: int, tmp_path: Path) -> None:
    class Size:
        size, rank = 2, 0

    save_family(tmp_path, family, setting, **({"num_attention_heads": 4, "hidden_size": 64} if setting else {}))
    with pytest.raises(ConfigError, match="--tp-size: models .* run on one rank"):
        shard_model(read_model_config(tmp_path, {}), Size())  # type: ignore[arg-type]


def test_parallel_halves_and_layer_norms_over_two_ranks(tmp_path: Path) -> None:
    save_family(tmp_path, "cohere", num_attention_heads=4)
    expected = tokens(create_worker(ModelOptions(str(tmp_path)), DeviceOptions(kernels="reference"), MEMORY))
    with ranks(tmp_path, DeviceOptions(kernels="reference", tp_size=2)) as worker:
        assert tokens(worker) == expected
