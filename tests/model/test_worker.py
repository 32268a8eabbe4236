"""Loading: which kernels, what the worker says of the model, mixed formats, dummy weights, and clear errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions
from sglang.srt.errors import CapacityError, ConfigError, ModelError
from sglang.srt.forward_batch import VocabMasks
from sglang.srt.model import worker as worker_module
from sglang.srt.model.capacity import HostMemory
from sglang.srt.model.device import create_ops
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.quant.formats import HostTensor, quantize_q4_1, quantize_q8_0
from sglang.srt.model.runner import ModelRunner
from sglang.srt.model.sampling import needed_columns
from sglang.srt.model.weights.loader import load_checkpoint
from sglang.srt.model.worker import create_worker, worker_from
from sglang.srt.sampling_params import SamplingParams
from tests.model.tiny import Driver, open_worker, save_model

torch = pytest.importorskip("torch")

PROMPT = [int(i) for i in np.random.default_rng(4).integers(3, 199, 37)]
REFERENCE = DeviceOptions(kernels="reference")
SMALL = MemoryOptions(max_total_tokens=512, max_running_requests=4, chunked_prefill_size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_model(path, "llama")
    return path


def logits(worker: Any) -> np.ndarray[Any, Any]:
    driver = Driver(worker)
    return driver.logits([(driver.add(PROMPT), len(PROMPT))])


# --- which kernels ------------------------------------------------------------------------------------------------------------


class Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture()
def notes() -> Any:
    handler, logger = Notes(), logging.getLogger("sglang")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_without_the_extension_the_reference_runs_with_one_warning(monkeypatch: pytest.MonkeyPatch, notes: Notes) -> None:
    monkeypatch.setitem(sys.modules, "sglang.srt.model.kernels.cpu", None)
    assert create_ops(DeviceOptions()).name == "reference numpy"
    assert len(notes.lines) == 1 and "slower" in notes.lines[0]
    with pytest.raises(ConfigError, match="--kernels cpu: the C"):
        create_ops(DeviceOptions(kernels="cpu"))


def test_the_reference_on_request_is_silent(notes: Notes) -> None:
    assert isinstance(create_ops(REFERENCE), ReferenceOps)
    assert notes.lines == []


@pytest.mark.parametrize("device", [DeviceOptions(device="cuda"), DeviceOptions(kernels="cuda")])
def test_cuda_is_refused(device: DeviceOptions) -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        create_ops(device)


# --- what it says -------------------------------------------------------------------------------------------------------------


def test_info(folder: Path) -> None:
    info = create_worker(ModelOptions(str(folder), context_length=100), REFERENCE, SMALL).info
    assert info.architecture == "llama" and info.vocab_size == 199 and info.context_len == 100
    assert info.max_total_tokens == 512 and info.slot_run == 16
    assert info.max_batch_tokens == 68 and info.max_running_requests == 4
    assert info.kv_bytes_per_token == 3 * 2 * 2 * 16 * 4
    layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 96
    assert info.num_params == 2 * 199 * 64 + 3 * layer
    assert info.weight_bytes == 4 * info.num_params
    assert info.deterministic and info.dtype == "float32" and info.quantization is None


def test_tied_weights_are_held_once(tmp_path: Path) -> None:
    save_model(tmp_path, "llama", tie_word_embeddings=True)
    info = open_worker(tmp_path, ReferenceOps()).info
    assert info.num_params == 199 * 64 + 3 * (64 * 128 + 64 * 64 + 3 * 64 * 96)


# --- errors -------------------------------------------------------------------------------------------------------------------


def test_context_longer_than_the_models(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--context-length 1000"):
        create_worker(ModelOptions(str(folder), context_length=1000), REFERENCE, SMALL)


def test_a_longer_context_by_override(folder: Path) -> None:
    options = ModelOptions(str(folder), context_length=1000, json_model_override_args={"max_position_embeddings": 2000})
    assert create_worker(options, REFERENCE, SMALL).info.context_len == 1000


def test_pool_that_does_not_fit(folder: Path) -> None:
    with pytest.raises(CapacityError, match="--max-total-tokens"):
        create_worker(ModelOptions(str(folder)), REFERENCE, MemoryOptions(max_total_tokens=10**12))


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_the_plan_knows_what_weights_take(tmp_path: Path, kernels: Any, quantization: Any) -> None:
    save_model(tmp_path, "llama", hidden_size=256, intermediate_size=512)
    options = ModelOptions(str(tmp_path), quantization=quantization)
    ops = create_ops(DeviceOptions(kernels=kernels))
    checkpoint = load_checkpoint(resolve_model(str(tmp_path)), options, getattr(ops, "formats", ()))
    planned = checkpoint.packed_bytes(ops.packed_bits)
    taken = create_worker(options, DeviceOptions(kernels=kernels), SMALL).info.weight_bytes
    assert 0.95 * taken < planned < 1.1 * taken


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "device_memory", lambda ops, memory: HostMemory(1 << 20, 1 << 16))
    monkeypatch.setattr(worker_module, "worker_from", lambda *args: pytest.fail("it was loaded"))
    with pytest.raises(CapacityError, match=r"needs .* GiB for weights, .* are available; .* a smaller model"):
        create_worker(ModelOptions(str(folder)), REFERENCE, MemoryOptions())


def test_out_of_memory_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(ReferenceOps, "kv_layers", refuse)
    with pytest.raises(CapacityError, match="does not suffice"):
        create_worker(ModelOptions(str(folder)), REFERENCE, SMALL)


def test_no_model() -> None:
    with pytest.raises(ModelError):
        create_worker(ModelOptions("./no/such/folder"), REFERENCE, SMALL)


# --- formats ------------------------------------------------------------------------------------------------------------------


class Unstackable(ReferenceOps):
    """As if every tensor had a format of its own."""

    def can_stack(self, parts: Sequence[HostTensor]) -> bool:
        return len(parts) == 1


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_parts_that_do_not_stack_write_columns(family: str, tmp_path: Path) -> None:
    save_model(tmp_path, family, **({"head_dim": 32} if family == "gemma3" else {}))
    together = logits(open_worker(tmp_path, ReferenceOps()))
    np.testing.assert_allclose(logits(open_worker(tmp_path, Unstackable())), together, atol=1e-5)


class Mixed:
    """A checkpoint whose v and up matrices have another format than their neighbours, as in Q4_K_M files."""

    def __init__(self, source: Any) -> None:
        self.source, self.has, self.vector = source, source.has, source.vector

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> HostTensor:
        tensor: HostTensor = self.source.tensor(name, shape)
        if "v_proj" in name or "up_proj" in name:
            return quantize_q8_0(name, tensor.dequantize())
        return quantize_q4_1(name, tensor.dequantize()) if "_proj" in name else tensor


def test_mixed_formats(folder: Path, ops: Ops) -> None:
    checkpoint = load_checkpoint(resolve_model(str(folder)), ModelOptions(str(folder)))
    source = Mixed(checkpoint)
    ours = logits(worker_from(source, checkpoint.config, ops, SMALL))
    exact = logits(worker_from(source, checkpoint.config, Unstackable(), SMALL))
    error = np.linalg.norm(ours - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert error.mean() < 0.04


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_dummy_weights_run(family: str, quantization: Any, ops: Ops, tmp_path: Path) -> None:
    save_model(tmp_path, family, head_dim=32)
    (tmp_path / "model.safetensors").unlink()
    options = ModelOptions(str(tmp_path), load_format="dummy", quantization=quantization)
    checkpoint = load_checkpoint(resolve_model(str(tmp_path)), options)
    worker = worker_from(checkpoint, checkpoint.config, ops, SMALL, quantization=quantization)
    assert worker.info.quantization == quantization
    driver = Driver(worker)
    seqs = [driver.add(PROMPT), driver.add(PROMPT[:3])]
    driver.generate(seqs, 3)
    assert all(0 <= token < 199 for seq in seqs for token in seq.output)


# --- a step -------------------------------------------------------------------------------------------------------------------


def test_rows_with_nan_are_named(tmp_path: Path, ops: Ops) -> None:
    model = save_model(tmp_path, "llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[77] = float("nan")
    model.save_pretrained(tmp_path)
    driver = Driver(open_worker(tmp_path, ops))
    good, bad = [5, 6, 7], [5, 6, 77]
    out = driver.step([(driver.add(ids), 3) for ids in (good, bad, good)])
    assert out.nan_rows == [1]
    assert out.next_ids[0] == out.next_ids[2]


def test_one_row_sampled_twice(folder: Path, ops: Ops) -> None:
    """Nothing forbids several samples of one row; each sees untouched logits."""
    driver = Driver(open_worker(folder, ops))
    seq, twin = driver.add(PROMPT), driver.add(PROMPT)
    batch = driver.batch([(seq, len(PROMPT))])
    batch.sample_rows = np.repeat(batch.sample_rows, 2)
    batch.samples.append(twin.spec)
    driver.worker.forward(batch)
    first, second = driver.worker.sample(batch, None).next_ids
    assert first == second


def test_a_step_without_samples(folder: Path, ops: Ops) -> None:
    driver = Driver(open_worker(folder, ops))
    out = driver.step([(driver.add(PROMPT), 5)])
    assert len(out.next_ids) == 0 and out.logprobs == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("decodes", [False, True])
def test_logits_that_masks_forbid_are_not_needed(
    folder: Path, ops: Ops, monkeypatch: pytest.MonkeyPatch, decodes: bool, late: bool
) -> None:
    """Whatever stands in their place: the same tokens, and the same rows are bad."""
    monkeypatch.setattr(needed_columns, "NARROW_SHARE", 4)
    bits = np.zeros((3, 7), np.uint32)
    bits[0, 1], bits[1], bits[2, 5] = 1 << 3, 0xFFFFFFFF, 0b11  # sample 0: one token; 2: all of them; 3: two
    answers = []
    for masked in (False, True):
        driver = Driver(open_worker(folder, ops))
        params = SamplingParams(temperature=1.0)
        seqs = [driver.add(PROMPT[: 9 + i], params, seed=i) for i in range(5)]
        bare = driver.add(PROMPT[:12], params)  # and of this one nothing is allowed
        parts = [(seq, len(seq.ids)) for seq in [*seqs, bare]]
        if decodes:
            driver.step(parts)
            parts = [(seq, 1) for seq in [*seqs, bare]]
        masks = VocabMasks(np.array([0, 2, 3, 5], np.int32), np.concatenate([bits, np.zeros((1, 7), np.uint32)]))
        batch = driver.batch(parts)
        batch.masked = masked
        runner = driver.worker._runner
        assert runner is not None and runner.can_skip_columns
        runner._step.logits[:] = np.nan
        wholes: list[int | None] = []

        def head(rows: Any, whole: int | None = None, blocks: Any = None) -> Any:
            wholes.append(whole)  # noqa: B023
            return ModelRunner.head(runner, rows, whole, blocks)  # noqa: B023

        monkeypatch.setattr(runner, "head", head)
        driver.worker.forward(batch)
        if late:
            driver.worker.finish()
        out = driver.worker.sample(batch, masks)
        assert out.next_ids[0] == 35 and out.next_ids[3] in (160, 161) and out.nan_rows == [5]
        answers.append(out.next_ids[:5].tolist())
        assert wholes == [None if late or not masked else 5 if decodes else 3], "rows of which all logits are computed"
    assert answers[0] == answers[1]
