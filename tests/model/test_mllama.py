"""Llama 3.2 Vision against transformers, from images to logits and to whole answers; and batch-invariant results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from PIL import Image

import sglang
from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import TextOptions
from sglang.srt.errors import ModelError, RequestError
from sglang.srt.forward_batch import ForwardBatch
from sglang.srt.media_item import MediaItem
from sglang.srt.messages import TokenizedReq
from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.worker import LocalWorker
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.media.req_media import ReqMedia, req_media
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import ModelFolder, Processor
from sglang.srt.server.multimodal.processors.registry import create_processor
from sglang.srt.server.multimodal.spans import expand
from sglang.srt.server.tokenization.tokenizer import load_tokenizer
from tests.model.mllama import IMAGE, PUBLISHED_PATCH, PUBLISHED_TILE, expected_logits, save_mllama
from tests.model.test_vision_pictures import picture
from tests.model.tiny import open_worker
from tests.model.vision import embed

PROMPTS: dict[str, list[Any]] = {
    "none": [5, 9, 30],
    "one": [(50, 31), 17, 33, 8],
    "one, text before": [5, 11, (20, 70), 17],
    "one, tall, at the end": [5, 7, (20, 170)],
    "several, mixed sizes, text between": [3, (28, 28), 7, 8, (64, 40), 9, (30, 90), 11, 4],
    "side by side": [3, (28, 28), (64, 40), 9, 5],
    "more words than rows": [(20, 20), *range(10, 60)],
}


@dataclass
class Family:
    folder: Path
    model: Any
    ours: Processor


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(tmp_path_factory.mktemp("mllama"))


def make_family(folder: Path, **sizes: int) -> Family:
    model = save_mllama(folder, **sizes)
    words = {f"w{i}": i for i in range(IMAGE)} | {"<|image|>": IMAGE}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.add_special_tokens(["<|image|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    text = load_tokenizer(TextOptions(str(folder)), resolve_model(str(folder)))
    return Family(folder, model, create_processor(ModelFolder(folder, text)))


@pytest.fixture(params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return ReferenceOps() if request.param == "reference" else CpuOps(2)


@dataclass
class Prompt:
    bare: list[int]
    images: list[Image.Image]
    ids: list[int]
    media: ReqMedia | None


def prompt_of(family: Family, worker: LocalWorker, parts: list[Any], seed: int = 5) -> Prompt:
    rng = np.random.default_rng(seed)
    images = [picture(rng, part) for part in parts if isinstance(part, tuple)]
    bare = [IMAGE if isinstance(part, tuple) else part for part in parts]
    pictures = [family.ours.process("image", Clip([np.asarray(image)]), View(alone=False)) for image in images]
    ids, spans = expand(bare, pictures, family.ours.placeholders, family.ours.image_token)
    items = tuple(
        MediaItem("image", p.mm_hash, tuple(found), p.pixels.tobytes(), p.pixels.shape, p.grid, p.facts)
        for p, found in zip(pictures, spans, strict=True)
    )
    media = req_media(TokenizedReq("r", ids, SamplingParams(), media=items), worker.info)
    if media is not None:
        media.jobs.update(embed(worker, items))
    return Prompt(bare, images, ids, media)


def compute(worker: LocalWorker, prompts: list[Prompt], chunk: int = 10**6) -> list[np.ndarray[Any, Any]]:
    """Logits of every position of each prompt; all go along in each step, a chunk of each (as last_end cuts it)."""
    info = worker.info
    table = np.arange(info.max_running_requests * 128, dtype=np.int32).reshape(info.max_running_requests, 128)
    table = np.concatenate([table, np.zeros((len(table), info.context_len - 128), np.int32)], axis=1)
    worker.bind(table)
    done, found = [0] * len(prompts), [[] for _ in prompts]  # type: ignore[var-annotated]
    while any(at < len(p.ids) for at, p in zip(done, prompts, strict=True)):
        parts = []
        for i, (at, p) in enumerate(zip(done, prompts, strict=True)):
            end = min(at + chunk, len(p.ids))
            end = p.media.last_end(at, end) if p.media is not None else end
            if at < end:
                parts.append((i, at, end))
        batch = batch_of(prompts, parts, table)
        worker.forward(batch)
        runner = worker._runner
        assert runner is not None
        row = 0
        for i, at, end in parts:
            for a in range(row, row + end - at, runner.limits.max_logit_rows):
                b = min(a + runner.limits.max_logit_rows, row + end - at)
                found[i].append(runner.head(np.arange(a, b, dtype=np.int32)).copy())
            done[i], row = end, row + end - at
    return [np.concatenate(blocks) for blocks in found]


def batch_of(prompts: list[Prompt], parts: list[tuple[int, int, int]], table: np.ndarray[Any, Any]) -> ForwardBatch:
    def joined(arrays: list[Any]) -> Any:
        return np.concatenate(arrays).astype(np.int32)

    lengths = np.array([end - at for _, at, end in parts], np.int32)
    batch = ForwardBatch(
        input_ids=joined([prompts[i].ids[at:end] for i, at, end in parts]),
        positions=joined([np.arange(at, end) for _, at, end in parts]),
        out_cache_loc=joined([table[i, at:end] for i, at, end in parts]),
        req_pool_idx=np.array([i for i, _, _ in parts], np.int32),
        q_start=(np.cumsum(lengths) - lengths).astype(np.int32),
        q_len=lengths,
        seq_lens=np.array([end for _, _, end in parts], np.int32),
        sample_rows=np.zeros(0, np.int32),
        samples=[],
    )
    for (i, at, end), row in zip(parts, batch.q_start.tolist(), strict=True):
        media = prompts[i].media
        if media is not None:
            batch.embeds += media.rows(at, end, row)
            batch.cross_rows += media.cross_rows(at, end, row)
    return batch


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits(family: Family, ops: Ops, prompt: str) -> None:
    worker = open_worker(family.folder, ops)
    given = prompt_of(family, worker, PROMPTS[prompt])
    want = expected_logits(family.model, given.bare, given.images)
    got = compute(worker, [given])[0]
    tolerance = 3e-4 if isinstance(ops, ReferenceOps) else 2e-2  # the native kernels keep K and V in 16 bits
    assert np.abs(want).max() > 1
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()


def test_cross_attention_in_the_first_and_the_last_layer(family: Family, tmp_path: Path) -> None:
    model = save_mllama(tmp_path, num_hidden_layers=3, cross_attention_layers=[0, 2])
    worker = open_worker(tmp_path, ReferenceOps())
    given = prompt_of(family, worker, PROMPTS["several, mixed sizes, text between"])
    want, got = expected_logits(model, given.bare, given.images), compute(worker, [given])[0]
    assert np.abs(got - want).max() < 3e-4 * np.abs(want).max()


def test_published_tiles(tmp_path: Path) -> None:
    """Photos of odd sizes in tiles as large as the published model's."""
    family = make_family(tmp_path, tile=PUBLISHED_TILE, patch=PUBLISHED_PATCH)
    worker = open_worker(tmp_path, CpuOps(2))
    given = prompt_of(family, worker, [3, (1001, 667), 7, (31, 77), 9])
    want, got = expected_logits(family.model, given.bare, given.images), compute(worker, [given])[0]
    assert np.abs(got - want).max() < 2e-2 * np.abs(want).max()


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_chunks_and_batches_change_no_bit(family: Family, chunk: int) -> None:
    worker = open_worker(family.folder, CpuOps(2))
    prompts = [prompt_of(family, worker, parts, seed) for seed, parts in enumerate(PROMPTS.values())]
    alone = [compute(worker, [prompt])[0] for prompt in prompts]
    for one, other in zip(alone, compute(worker, prompts, chunk), strict=True):
        assert one.tobytes() == other.tobytes()


def test_tape_and_calls_agree(family: Family) -> None:
    found = []
    for use_tape in (True, False):
        worker = open_worker(family.folder, CpuOps(2), use_tape)
        found.append(compute(worker, [prompt_of(family, worker, PROMPTS["side by side"])])[0].tobytes())
    assert found[0] == found[1]


def test_rows_see_the_last_picture_alone(family: Family) -> None:
    worker = open_worker(family.folder, CpuOps(2))
    parts = [4, (28, 28), 7, (64, 40), 9]
    first, second = (compute(worker, [prompt_of(family, worker, parts, seed)])[0] for seed in (1, 2))
    assert (first[0] == second[0]).all() and not np.allclose(first[1:], second[1:])


def test_pictures_are_placed_once_and_make_room(family: Family) -> None:
    worker = open_worker(family.folder, CpuOps(2), max_running_requests=2)
    prompts = [prompt_of(family, worker, [(28, 28), 7, 8], seed) for seed in range(12)]
    alone = compute(worker, prompts[:1], 1)[0]
    runner = worker._runner
    assert runner is not None and runner._step.cross is not None
    assert runner._step.cross.memory.num_placed == 1  # three steps
    for prompt in prompts:
        compute(worker, [prompt])
    assert compute(worker, prompts[:1])[0].tobytes() == alone.tobytes()


def test_too_many_side_by_side(family: Family) -> None:
    with sglang.Engine(model_path=str(family.folder), max_total_tokens=1024, threads=2) as engine:
        rng = np.random.default_rng(3)
        images = [picture(rng, (28, 28)) for _ in range(5)]
        with pytest.raises(RequestError, match="adjacent images"):
            engine.generate(input_ids=[IMAGE] * 5 + [4], sampling_params={"max_new_tokens": 2}, image_data=images)
        assert engine.generate(input_ids=[IMAGE] * 4 + [4], sampling_params={"max_new_tokens": 2}, image_data=images[:4])


def prompts_with_images(rng: np.random.Generator) -> tuple[list[list[int]], list[list[Image.Image]]]:
    """The ids of PROMPTS, and the images of each."""
    parts = PROMPTS.values()
    ids = [[IMAGE if isinstance(part, tuple) else part for part in prompt] for prompt in parts]
    return ids, [[picture(rng, part) for part in prompt if isinstance(part, tuple)] for prompt in parts]


def test_the_engine_generates_what_transformers_does(family: Family) -> None:
    """All prompts at once, in small steps, then again from the cache; with reference kernels, in float32. Against the model's
    own forward pass over the whole text: with several pictures, `generate` of transformers 5.23 does not agree with that."""
    rng = np.random.default_rng(8)
    prompts, shown = prompts_with_images(rng)
    options = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    flags: dict[str, Any] = {"kernels": "reference", "max_total_tokens": 2048, "chunked_prefill_size": 24, "threads": 1}
    with sglang.Engine(model_path=str(family.folder), **flags) as engine:
        replies = engine.generate(input_ids=prompts, sampling_params=options, image_data=shown)
        again = engine.generate(input_ids=prompts, sampling_params=options, image_data=shown)
    for number, (ids, images) in enumerate(zip(prompts, shown, strict=True)):
        meta = replies[number]["meta_info"]
        assert again[number]["output_ids"] == replies[number]["output_ids"]
        assert again[number]["meta_info"]["cached_tokens"] == meta["prompt_tokens"] - 1 == len(ids) - 1
        grown = list(ids)
        for _ in range(6):
            grown.append(int(expected_logits(family.model, grown, images)[-1].argmax()))
        assert replies[number]["output_ids"] == grown[len(ids) :], number


def test_retraction_and_other_steps_change_nothing(family: Family) -> None:
    rng = np.random.default_rng(9)
    prompts, shown = prompts_with_images(rng)
    options = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    found = []
    for flags in (
        {"chunked_prefill_size": 512},
        {"chunked_prefill_size": 5, "disable_radix_cache": True, "max_running_requests": 3},
        {"test_retract_every": 2},
    ):
        with sglang.Engine(model_path=str(family.folder), max_total_tokens=1024, threads=2, **flags) as engine:
            replies = engine.generate(input_ids=prompts * 2, sampling_params=options, image_data=shown * 2, return_logprob=True)
            found.append([reply["meta_info"]["output_token_logprobs"] for reply in replies])
            if "test_retract_every" in flags:
                assert sum(reply["meta_info"]["num_retractions"] for reply in replies) > 0
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("where", "field", "value", "message"),
    [
        ("text_config", "cross_attention_layers", [9], "cross_attention_layers"),
        ("vision_config", "intermediate_layers_indices", "all", "intermediate_layers_indices"),
        ("vision_config", "vision_output_dim", 33, "vision_output_dim"),
        ("vision_config", "supported_aspect_ratios", [[1, 1]], "supported_aspect_ratios"),
    ],
)
def test_configs_that_contradict_themselves(
    family: Family, tmp_path: Path, where: str, field: str, value: Any, message: str
) -> None:
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(family.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config[where][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        open_worker(folder, ReferenceOps())
