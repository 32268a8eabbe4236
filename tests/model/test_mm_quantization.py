"""--mm-quantization: encoders of images in int8 beside decoders that stay as they are, with the same bits in any batch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sglang.srt.model.worker as worker_module
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions, WeightsCacheOptions
from sglang.srt.media_item import MediaItem
from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.packing import INTS
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.weights.loader import Conversion
from sglang.srt.model.worker import create_worker
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.spans import expand
from tests.model.test_vision_pictures import CASES, make_family, picture
from tests.model.tiny import open_worker
from tests.model.vision import embed, logits, save_qwen, show

WORDS = [5, 17, 33, 60, 121, 8, 90]
PICTURES: list[Any] = [[5], (1, 8, 12), WORDS, (1, 4, 4), [9]]


@pytest.fixture(scope="module", params=["Qwen2VL", "Qwen2_5_VL"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    save_qwen(path, request.param)
    return path


@pytest.fixture(params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return ReferenceOps() if request.param == "reference" else CpuOps(2)


def test_logits_are_near_and_text_alone_is_untouched(folder: Path, ops: Ops) -> None:
    exact, rounded, both = (
        open_worker(folder, ops, quantization=text, mm_quantization=mm)
        for text, mm in ((None, None), (None, "int8"), ("int8", "none"))
    )
    shown = show(np.random.default_rng(0), PICTURES)
    words = show(np.random.default_rng(0), [WORDS])
    assert logits(rounded, words).tobytes() == logits(exact, words).tobytes() != logits(both, words).tobytes()
    wanted, found = logits(exact, shown), logits(rounded, shown)
    assert wanted.tobytes() != found.tobytes()
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    pictures = [embed(worker, shown.items) for worker in (exact, rounded, both)]
    for item in shown.items:
        values = [jobs[item.mm_hash].embedding for jobs in pictures]
        error = np.sqrt(np.mean((values[1] - values[0]) ** 2) / np.mean(values[0] ** 2))
        assert 0 < error < 0.06
        assert values[2].tobytes() == values[0].tobytes()


def test_every_large_matrix_is_int8(folder: Path) -> None:
    worker: Any = open_worker(folder, CpuOps(1), mm_quantization="int8")
    encoder: Any = worker._encodings._encoder
    dense = [w for w in encoder.weights if w.kind not in INTS]
    assert dense == encoder.embed.weights  # what reads pixels
    widths = {w.in_features for layer in encoder.layers for w in layer.mlp.weights}
    assert widths == ({64, 96} if hasattr(encoder.layers[0].mlp, "down") else {64, 128})  # the config's are 80 and 128


def test_rows_do_not_depend_on_the_batch(folder: Path, ops: Ops) -> None:
    shown = show(np.random.default_rng(2), [(1, 8, 6), (1, 2, 2), (2, 4, 4), (1, 20, 16)])
    together = embed(open_worker(folder, ops, mm_quantization="int8"), shown.items)
    other = open_worker(folder, ops, mm_quantization="int8")
    for item in shown.items:
        alone = embed(other, [item])[item.mm_hash]
        assert alone.embedding.tobytes() == together[item.mm_hash].embedding.tobytes()


def test_a_start_from_packed_weights_reads_no_matrix(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    reads = worker_module.Checkpoint._read
    monkeypatch.setattr(worker_module.Checkpoint, "_read", lambda c, name: (read.append(name), reads(c, name))[1])
    cache = WeightsCacheOptions(str(tmp_path), 1 << 30, least_bytes=1)
    shown, found = show(np.random.default_rng(0), PICTURES), []
    for mm in ("int8", "int8", None):
        read.clear()
        options = ModelOptions(str(folder), weights_cache=cache, mm_quantization=mm)
        memory = MemoryOptions(max_total_tokens=2048, max_running_requests=24, chunked_prefill_size=600)
        worker = create_worker(options, DeviceOptions(kernels="cpu", threads=1), memory)
        for thread in threading.enumerate():
            if thread.name == "sglang-weights":
                thread.join(60)
        found.append((logits(worker, shown).tobytes(), any(name.endswith(("down_proj.weight", "fc1.weight")) for name in read)))
    assert found[0][0] == found[1][0] != found[2][0]
    assert [was_read for _, was_read in found] == [True, False, True]


@pytest.mark.parametrize("name", ["gemma3", "llava_onevision", "qwen3_vl"])
def test_other_families(name: str, tmp_path: Path) -> None:
    """Feed-forward layers and mergers of other names, tables of positions, a projector that is stored transposed."""
    family = make_family(CASES[name], tmp_path)
    image = picture(np.random.default_rng(1), (70, 56))
    made = family.ours.process("image", Clip([np.asarray(image)]), View())
    ids, spans = expand(
        [family.ours.placeholders["image"]], [made], family.ours.placeholders, family.ours.image_token, family.lines
    )
    item = MediaItem("image", made.mm_hash, tuple(spans[0]), made.pixels.tobytes(), made.pixels.shape, made.grid, made.facts)
    exact, *others = (
        embed(open_worker(tmp_path, CpuOps(2), quantization=text, mm_quantization=mm), [item])[item.mm_hash].embedding
        for text, mm in ((None, None), (None, "int8"), ("int8", None))
    )
    for values in others:
        assert 0 < np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2)) < 0.05


def test_what_is_rounded() -> None:
    shape = (64, 80)
    mm, text = Conversion(None, None, "int8"), Conversion(None, "int8", "none")
    for name, is_rounded in {
        "visual.blocks.0.mlp.down_proj.weight": True,
        "vision_tower.encoder.layers.3.mlp.fc2.weight": True,
        "visual.blocks.0.attn.proj.weight": False,  # its rows cannot be made wider
        "visual.pos_embed.weight": False,
        "model.layers.0.mlp.down_proj.weight": False,
        "lm_head.weight": False,
    }.items():
        assert (mm.format_of(name, shape, "bf16") == "q8_0") is is_rounded
        assert text.format_of(name, shape, "bf16") == "bf16"
    assert mm.format_of("visual.blocks.0.attn.proj.weight", (64, 96), "f16") == "q8_0"
    assert mm.format_of("visual.patch_embed.proj.weight", (64, 3, 2, 14, 14), "bf16") == "bf16"
    assert text.format_of("lm_head.weight", (64, 96), "bf16") == "q8_0"
