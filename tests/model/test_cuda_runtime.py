"""The runtime around the CUDA op set, as far as a CPU goes: graphs' sizes, steps that run ahead and the engine as a whole on
Triton's interpreter; devices that are not there are one clear error."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.common import devices
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.engine import Engine
from sglang.srt.errors import ConfigError
from sglang.srt.model.capacity import HostMemory
from sglang.srt.model.cuda_graph import graph_sizes
from sglang.srt.model.device import compute_dtype, create_ops, device_options
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.worker import create_worker
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs
from tests.model.tiny import Driver, open_worker, save_model

pytest.importorskip("torch", reason="tiny checkpoints are made by transformers")

PROMPTS = [[int(i) for i in np.random.default_rng(s).integers(3, 199, 9 + s)] for s in range(3)]
FLAGS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "grammar_backend": "none",
    "max_total_tokens": 512,
    "context_length": 64,
    "max_running_requests": 4,
    "chunked_prefill_size": 16,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, "qwen2", num_hidden_layers=1)
    return path


def need_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from sglang.srt.model.kernels.cuda import ops as cuda

    if not cuda.INTERPRETED:
        pytest.skip("Triton compiles here: benchmarks/cuda.py tests on the device")


def answers(folder: Path, sampling: list[dict[str, Any]], **flags: Any) -> tuple[list[list[int]], dict[str, Any]]:
    with Engine(model_path=str(folder), **{**FLAGS, **flags}) as engine:
        replies = engine.generate(input_ids=PROMPTS, sampling_params=sampling)
        return [reply["output_ids"] for reply in replies], engine.get_server_info()


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True},
    {"temperature": 0, "max_new_tokens": 4, "frequency_penalty": 0.7, "min_new_tokens": 3},
    {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 4, "sampling_seed": 5, "ignore_eos": True},
]


@pytest.mark.parametrize("flags", [{}, {"disable_overlap_schedule": True, "disable_cuda_graph": True}], ids=["ahead", "plain"])
def test_the_engine_on_the_interpreter(folder: Path, flags: dict[str, Any]) -> None:
    need_interpreter()
    expected, _ = answers(folder, SAMPLING, kernels="reference")
    ours, info = answers(folder, SAMPLING, kernels="cuda", dtype="float32", cuda_graph_max_bs=3, **flags)
    assert ours == expected
    assert info["kernels"].startswith("cuda interpreted float32") and info["runs_ahead"] and not info["deterministic"]
    assert info["graph_max_reqs"] == (0 if flags else 3)


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "fp8_e4m3")])
def test_runs_of_the_pool_as_bytes(dtype: str, kv_dtype: Any) -> None:
    """Whole runs and records in pieces of several, as reference.py's pool gives them; nothing else is touched."""
    need_interpreter()
    ops = create_ops(DeviceOptions(device="cpu", kernels="cuda", kv_cache_dtype=kv_dtype), dtype)
    layers = ops.kv_layers(3, 64, 2, 8)
    runs = ops.kv_runs(layers)
    assert runs is not None and runs.run == 16 and len(runs.arena(100)) == 100
    rng = np.random.default_rng(1)
    data = [rng.integers(0, 100, runs.run_bytes, dtype=np.uint8) for _ in range(4)]
    for i, each in enumerate(data):
        runs.write(16 * i, each)
    out = np.full(runs.run_bytes, 7, np.uint8)
    for i, each in enumerate(data):
        runs.read(np.arange(16 * i, 16 * i + 16, dtype=np.int32), out)
        assert (out == each).all()
    mixed = np.concatenate([np.arange(32, 37), np.arange(5, 16)]).astype(np.int32)
    runs.read(mixed, out)
    parts = [each.reshape(3, 2, 2, 16, -1) for each in (out, data[2], data[0])]
    assert (parts[0][..., :5, :] == parts[1][..., :5, :]).all() and (parts[0][..., 5:, :] == parts[2][..., 5:, :]).all()


@pytest.mark.slow  # pytest -m slow tests/model/test_cuda_runtime.py
@pytest.mark.parametrize("tiers", [{"enable_hierarchical_cache": True}, {"cache_dir": "cache"}], ids=["host", "disk"])
def test_what_the_pool_drops_comes_back(folder: Path, tiers: dict[str, Any], tmp_path: Path) -> None:
    need_interpreter()
    if "cache_dir" in tiers:
        tiers = {"cache_dir": str(tmp_path / "cache")}
    flags = FLAGS | {"kernels": "cuda", "dtype": "float32", "max_total_tokens": 128, "context_length": 64, **tiers}
    prompts = [[int(i) for i in np.random.default_rng(s).integers(3, 199, 49)] for s in range(4)]
    sampling = {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True}
    with Engine(model_path=str(folder), **{**flags, "chunked_prefill_size": 64}) as engine:
        for _ in range(2):  # what is found again is written
            first = [engine.generate(input_ids=prompts[0], sampling_params=sampling) for _ in range(2)]
        for prompt in prompts[1:]:
            engine.generate(input_ids=prompt, sampling_params=sampling)
        again = engine.generate(input_ids=prompts[0], sampling_params=sampling)
    assert again["output_ids"] == first[0]["output_ids"]
    assert again["meta_info"]["cached_tokens"] >= 48


def test_deterministic_mode_is_shown(folder: Path) -> None:
    need_interpreter()
    flags = DeviceOptions(device="cpu", kernels="cuda", deterministic=True)
    worker = create_worker(ModelOptions(str(folder)), flags, MemoryOptions(max_total_tokens=64, max_running_requests=2))
    assert worker.info.deterministic and "fixed-order" in worker.info.kernels


# --- running ahead and graphs, with any op set --------------------------------------------------------------------------------


class Graphed(ReferenceOps):
    """NumPy with `capture`: recordings are the calls, and the bounds they were made under are checked."""

    name = "reference with graphs"

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.replayed: list[int] = []

    def bound_step(self, meta: Any, shape: Any) -> None:
        self.last = shape

    def capture(self, run: Any) -> Any:
        size = self.last.num_reqs
        self.recorded.append(size)

        def replay() -> None:
            self.replayed.append(size)
            run()

        return replay


def generate(worker: Any, ahead: bool) -> list[list[int]]:
    """Decodes three requests together; `ahead`: as the scheduler does when it does not wait for tokens."""
    driver = Driver(worker)
    seqs = [driver.add(prompt, SamplingParams(temperature=0.0), seed=i) for i, prompt in enumerate(PROMPTS)]
    driver.step([(seq, len(seq.prompt)) for seq in seqs])
    if not ahead:
        driver.generate(seqs, 6)
        return [seq.output for seq in seqs]
    batch = driver.batch([(seq, 1) for seq in seqs])
    worker.forward(batch)
    waits = [worker.begin_sample(batch, None)]
    for _ in range(4):
        for seq in seqs:  # a token that only the device knows
            seq.output.append(0)
        batch = replace(driver.batch([(seq, 1) for seq in seqs]), previous=np.arange(3, dtype=np.int32))
        worker.forward(batch)
        waits.append(worker.begin_sample(batch, None))
    sampled = np.array([wait().next_ids for wait in waits])
    return [[seq.output[0], *sampled[:, i].tolist()] for i, seq in enumerate(seqs)]


def test_ids_stay_on_the_device(folder: Path, ops: Ops) -> None:
    assert generate(open_worker(folder, ops), ahead=True) == generate(open_worker(folder, ops), ahead=False)


def test_decode_steps_take_the_smallest_graph_that_holds_them(folder: Path) -> None:
    expected = generate(open_worker(folder, ReferenceOps()), ahead=False)
    ops = Graphed()
    worker = open_worker(folder, ops)
    worker.info = replace(worker.info, graph_max_reqs=12)
    assert generate(worker, ahead=True) == expected
    assert ops.recorded == [12, 8, 4, 2, 1]
    assert ops.replayed == [4] * 5, "the prompts' step is none of them"


def test_sizes_of_graphs() -> None:
    assert graph_sizes(0) == [] and graph_sizes(1) == [1] and graph_sizes(3) == [1, 2, 3]
    assert graph_sizes(24) == [1, 2, 4, 8, 16, 24] and graph_sizes(256)[-2:] == [248, 256]


# --- choosing a device --------------------------------------------------------------------------------------------------------


def test_cuda_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang.srt.model.kernels.cuda.ops", None)
    with pytest.raises(ConfigError, match=r"needs torch and Triton .*pip install .*\[srt,cuda\]"):
        create_ops(DeviceOptions(device="cuda"))


def test_a_device_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    need_interpreter()
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        create_ops(DeviceOptions(device="cuda", tp_size=4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ConfigError, match="--tp-size needs 4 CUDA devices on this machine, one for each rank, and torch finds 2"
    ):
        create_ops(DeviceOptions(device="cuda", tp_size=4))


def test_flags_that_contradict_the_device() -> None:
    with pytest.raises(ConfigError, match="does not run on --device cuda"):
        create_ops(DeviceOptions(device="cuda", kernels="cpu"))
    with pytest.raises(
        ConfigError, match="--kv-cache-dtype bfloat16 is for --device cuda; on a CPU it may be auto, int8 or fp8"
    ):
        create_ops(DeviceOptions(device="cpu", kv_cache_dtype="bfloat16"))


def test_auto_takes_a_gpu_that_can_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "DRIVER_FILES", (str(tmp_path / "none"),))
    assert ServerArgs().resolve().device.device == "cpu"
    monkeypatch.setattr(devices, "DRIVER_FILES", (str(tmp_path),))
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: object())
    config = ServerArgs().resolve()
    assert config.device.device == "cuda"
    assert config.memory.chunked_prefill_size == config.schedule.chunked_prefill_size == 8192
    assert config.memory.max_running_requests == 256 and config.device.graph_max_reqs == 256
    assert ServerArgs(kernels="cpu").resolve().device.device == "cpu"
    assert ServerArgs(disable_cuda_graph=True).resolve().device.graph_max_reqs == 0
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None if name == "triton" else object())
    assert ServerArgs().resolve().device.device == "cpu"


def test_what_a_model_computes_in() -> None:
    assert compute_dtype("bfloat16", "auto") == "bfloat16" and compute_dtype("q4_k", "auto") == "bfloat16"
    assert compute_dtype("bfloat16", "float16") == "float16" and compute_dtype("float32", "auto") == "float32"


def test_the_pool_takes_what_a_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.model import device
    from sglang.srt.model.capacity import ModelFootprint, plan_capacity

    monkeypatch.setattr(device, "on_gpu", lambda ops: True)
    options = device_options(MemoryOptions(max_running_requests=256), None)
    gib = 1 << 30
    capacity = plan_capacity(options, ModelFootprint(32768, 57344, 15 * gib, 16), HostMemory(80 * gib, 64 * gib), gib)
    assert capacity.max_total_tokens * 57344 == pytest.approx(0.88 * 80 * gib - 15 * gib, rel=1e-3)
    assert device_options(MemoryOptions(max_total_tokens=5), None).mem_fraction_static is None
    assert device_options(MemoryOptions(mem_fraction_static=0.5), None).mem_fraction_static == 0.5
