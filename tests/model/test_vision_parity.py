"""Vision-language models: full logits against transformers on tiny random configurations, and batch-invariant results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from tests.model.tiny import open_worker
from tests.model.vision import Shown, embed, logits, save_qwen, show

FAMILIES = ("Qwen2VL", "Qwen2_5_VL")
WORDS = [5, 17, 33, 60, 121, 8, 90]
CASES: dict[str, list[Any]] = {
    "none": [WORDS],
    "one": [[5], (1, 8, 12), WORDS],
    "several": [WORDS, (1, 4, 4), (1, 4, 4), [9]],
    "mixed sizes, text between": [[3, 4], (1, 2, 2), [7, 8, 9], (1, 10, 6), [11], (1, 4, 14), [12, 13]],
    "video": [[3], (3, 4, 6), WORDS, (1, 6, 4), [4]],
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, save_qwen(folder, request.param)


@pytest.fixture(params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return ReferenceOps() if request.param == "reference" else CpuOps(2)


def expected(model: Any, name: str, shown: Shown, time_step: float) -> np.ndarray[Any, Any]:
    import torch

    by_kind: dict[str, list[MediaItem]] = {"image": [], "video": []}
    for item in shown.items:
        by_kind[item.kind].append(item)
    inputs: dict[str, Any] = {"input_ids": torch.tensor([shown.ids])}
    types = np.zeros(len(shown.ids), np.int64)
    for number, (kind, items) in enumerate(by_kind.items(), 1):
        if not items:
            continue
        pixels = np.concatenate([np.frombuffer(i.pixels, np.float32).reshape(i.shape) for i in items])
        inputs["pixel_values" if kind == "image" else "pixel_values_videos"] = torch.from_numpy(pixels.copy())
        inputs[f"{kind}_grid_thw"] = torch.tensor([i.grid for i in items])
        for item in items:
            for offset, length in item.spans:
                types[offset : offset + length] = number
    inputs["mm_token_type_ids"] = torch.from_numpy(types)[None]
    if name == "Qwen2_5_VL" and by_kind["video"]:
        inputs["second_per_grid_ts"] = torch.tensor([time_step / 3] * len(by_kind["video"]))
    with torch.no_grad():
        return np.asarray(model(**inputs).logits[0])


@pytest.mark.parametrize("case", CASES)
def test_logits(family: tuple[str, Path, Any], ops: Ops, case: str) -> None:
    name, folder, model = family
    time_step = 1.5 if name == "Qwen2_5_VL" else 1.0
    shown = show(np.random.default_rng(1), CASES[case], time_step)
    worker = open_worker(folder, ops)
    got = logits(worker, shown)
    want = expected(model, name, shown, time_step)
    assert np.abs(want).max() > 1
    tolerance = 2e-4 if isinstance(ops, ReferenceOps) else 2e-2  # the native kernels keep K and V in 16 bits
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()


def test_rows_do_not_depend_on_the_batch(family: tuple[str, Path, Any], ops: Ops) -> None:
    worker = open_worker(family[1], ops)
    shown = show(np.random.default_rng(2), [(1, 8, 6), (1, 2, 2), (2, 4, 4), (1, 20, 16)])
    together = embed(worker, shown.items)
    other = open_worker(family[1], ops)
    for item in shown.items:
        alone = embed(other, [item])[item.mm_hash]
        assert alone.embedding.tobytes() == together[item.mm_hash].embedding.tobytes()


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_may_cut_pictures(family: tuple[str, Path, Any], chunk: int) -> None:
    worker = open_worker(family[1], CpuOps(2))
    shown = show(np.random.default_rng(3), CASES["mixed sizes, text between"])
    assert logits(worker, shown, chunk).tobytes() == logits(worker, shown).tobytes()


def test_steps_that_run_ahead_keep_their_pictures(tmp_path: Path) -> None:
    """A step of many layers still runs when the next one is prepared: each sees its own rows."""
    save_qwen(tmp_path, "Qwen2_5_VL", num_hidden_layers=24)
    shown = show(np.random.default_rng(8), [[5], *[(1, 16, 16)] * 6, WORDS])
    whole = logits(open_worker(tmp_path, CpuOps(2)), shown)
    for chunk in (64, 100, 128):
        got = logits(open_worker(tmp_path, CpuOps(2, ahead=True)), shown, chunk, last=True)
        assert got.tobytes() == whole[-len(got) :].tobytes()


def test_other_pixels_give_other_logits(family: tuple[str, Path, Any]) -> None:
    worker = open_worker(family[1], CpuOps(2))
    parts = [[3], (1, 4, 4), WORDS]
    first = logits(worker, show(np.random.default_rng(4), parts))
    second = logits(worker, show(np.random.default_rng(5), parts))
    assert (first[0] == second[0]).all() and not np.allclose(first[-1], second[-1])


def test_encodings_are_made_once_and_forgotten_by_size(family: tuple[str, Path, Any]) -> None:
    worker = open_worker(family[1], CpuOps(2), encoder_cache_bytes=10 * 64 * 4)
    queue = worker._encodings
    assert queue is not None
    shown = show(np.random.default_rng(6), [(1, 4, 4), (1, 4, 8)])  # 4 and 8 rows
    small, large = shown.items
    held = worker.encode(small)
    assert worker.encode(small) is held and not held.is_done
    embed(worker, [small, small])
    assert queue.num_encoded == 1 and worker.encode(small).is_done
    embed(worker, [large])
    assert queue.num_encoded == 2
    del held
    embed(worker, [large])
    assert queue.num_encoded == 2  # still there
    embed(worker, [small])
    assert queue.num_encoded == 3  # had to make room for the large one


def test_what_nobody_wants_is_not_encoded(family: tuple[str, Path, Any]) -> None:
    worker = open_worker(family[1], CpuOps(2))
    job = worker.encode(show(np.random.default_rng(7), [(1, 4, 4)]).items[0])
    del job
    assert not worker.encode_some(1.0)


@pytest.mark.parametrize(
    "change",
    [{"grid": (1, 4)}, {"grid": (1, 3, 4)}, {"grid": (1, 4, 8)}, {"pixels": b"1234"}, {"shape": (8, 8)}, {"spans": ((0, 3),)}],
)
def test_arrays_that_do_not_fit(family: tuple[str, Path, Any], change: dict[str, Any]) -> None:
    import msgspec

    worker = open_worker(family[1], CpuOps(2))
    item = show(np.random.default_rng(8), [(1, 4, 4)]).items[0]
    worker.check_item(item)
    with pytest.raises(RequestError, match="fit|stand for"):
        worker.check_item(msgspec.structs.replace(item, **change))
