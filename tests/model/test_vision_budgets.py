"""The resolution at which an image is read: budgets of tokens and pixels in every family, at published sizes; and times of videos."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import TextOptions
from sglang.srt.errors import RequestError
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.decode_work import Order, decode_bands
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import Pixels, View
from sglang.srt.server.multimodal.processors.base import ModelFolder, Processor
from sglang.srt.server.multimodal.processors.registry import create_processor
from sglang.srt.server.tokenization.tokenizer import load_tokenizer
from tests.model.test_vision_pictures import IMAGE, save_tokenizer
from tests.server.media_tools import yield_all

PHOTO = Shape(4032, 3024)
SHAPES = [
    PHOTO,
    Shape(3024, 4032),
    Shape(1200, 1600),
    Shape(640, 480),
    Shape(333, 77),
    Shape(3000, 20),
    Shape(28, 28),
    Shape(9, 31),
]
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": IMAGE + 1,
    "vision_start_token_id": IMAGE + 2,
    "vision_end_token_id": IMAGE + 3,
}
SIDES = [[384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)]
CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True}
QWEN = {"shortest_edge": 3136, "longest_edge": 12845056}

# model_type: (vision_config, the rest of config.json, preprocessor_config.json), as published
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ({"patch_size": 14}, IDS, {"size": QWEN, "patch_size": 14}),
    "qwen2_5_vl": ({"patch_size": 14, "tokens_per_second": 2}, IDS, {"size": QWEN, "patch_size": 14}),
    "qwen3_vl": ({"patch_size": 16}, IDS, {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16}),
    "llava_onevision": (
        {"image_size": 384, "patch_size": 14},
        {"image_token_id": IMAGE, "vision_aspect_ratio": "anyres_max_9"},
        {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": SIDES},
    ),
    "llava": (
        {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        {"image_token_index": IMAGE, "vision_feature_select_strategy": "default"},
        CLIP,
    ),
    "llava_next": (
        {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14},
        {"image_token_index": IMAGE, "vision_feature_select_strategy": "default"},
        {**CLIP, "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]},
    ),
    "pixtral": (
        {"model_type": "pixtral", "patch_size": 16, "image_size": 1024},
        {"model_type": "llava", "image_token_index": IMAGE},
        {"size": {"longest_edge": 1024}, "patch_size": {"height": 16, "width": 16}},
    ),
    "mistral3": (
        {"model_type": "pixtral", "patch_size": 14, "image_size": 1540},
        {"image_token_index": IMAGE, "spatial_merge_size": 2},
        {"size": {"longest_edge": 1540}, "patch_size": {"height": 14, "width": 14}},
    ),
    "glm4v": (
        {"patch_size": 14},
        {"image_token_id": IMAGE, "image_start_token_id": IMAGE + 2, "image_end_token_id": IMAGE + 3},
        {"size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}, "patch_size": 14},
    ),
    "internvl": (
        {"image_size": [448, 448], "patch_size": [14, 14]},
        {"image_token_id": IMAGE, "downsample_ratio": 0.5},
        {"size": {"height": 448, "width": 448}, "crop_to_patches": False, "max_patches": 12, "min_patches": 1},
    ),
    "smolvlm": (
        {"image_size": 512, "patch_size": 16},
        {"image_token_id": IMAGE, "scale_factor": 4},
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    ),
    "idefics3": (
        {"image_size": 364, "patch_size": 14},
        {"image_token_id": IMAGE, "scale_factor": 2},
        {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
    ),
    "gemma3": (
        {"image_size": 896, "patch_size": 14},
        {"image_token_index": IMAGE, "boi_token_index": IMAGE + 2, "eoi_token_index": IMAGE + 3},
        {"size": {"height": 896, "width": 896}},
    ),
    "gemma4": (
        {"patch_size": 16, "pooling_kernel_size": 3},
        {"image_token_id": IMAGE, "boi_token_id": IMAGE + 2, "eoi_token_id": IMAGE + 3},
        {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 280},
    ),
    "mllama": ({"image_size": 560, "patch_size": 14}, {"image_token_index": IMAGE}, {"size": {"height": 560, "width": 560}}),
}
LEAST = {
    "llava": 576,
    "llava_next": 577,
    "internvl": 258,
    "pixtral": 11,
    "mistral3": 7,
    "llava_onevision": 730,
    "smolvlm": 70,
    "idefics3": 175,
    "gemma3": 258,
    "gemma4": 72,
    "mllama": 1601,
}
"""tokens of the smallest picture of a family of tiles"""
TILE = {
    "llava": 336,
    "llava_next": 336,
    "internvl": 448,
    "llava_onevision": 384,
    "smolvlm": 512,
    "idefics3": 364,
    "gemma3": 896,
    "mllama": 560,
}
SMALLEST = TILE | {"gemma4": 402}
"""pixels a side of what the encoder sees at least"""


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Processor]:
    made: dict[str, Processor] = {}

    def processor(name: str) -> Processor:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            vision, rest, settings = PUBLISHED[name]
            (folder / "config.json").write_text(json.dumps({"model_type": name, "vision_config": vision, **rest}))
            (folder / "preprocessor_config.json").write_text(json.dumps(settings))
            save_tokenizer(folder)
            made[name] = create_processor(ModelFolder(folder, tokenizer_of(folder)))
        return made[name]

    return processor


def tokenizer_of(folder: Path) -> Any:
    (folder / "model.safetensors").touch()
    return load_tokenizer(TextOptions(str(folder)), resolve_model(str(folder)))


def cost(processor: Processor, name: str, shape: Shape, view: View) -> int:
    """Tokens; of Llama 3.2 Vision the rows that its decoder sees."""
    if name != "mllama":
        return processor.num_tokens("image", shape, view)
    width, height = processor.seen_size(shape, view)
    return width * height // 560**2 * 1601


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_picture_takes_more_than_the_budget(name: str, processors: Callable[[str], Processor]) -> None:
    ours = processors(name)
    for shape in SHAPES:
        most = cost(ours, name, shape, View("high"))
        for budget in (1, 17, 64, 300, 1000, 1280, 3333, 8000):
            found = cost(ours, name, shape, View("high", max_tokens=budget))
            assert found <= max(budget, LEAST.get(name, 0)), (shape, budget)
            assert found == most or most > budget, (shape, budget)  # nothing changes where there is room
        assert cost(ours, name, shape, View("high", max_tokens=1 << 20)) == most


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_photograph_of_12_megapixels_by_default(name: str, processors: Callable[[str], Processor]) -> None:
    ours = processors(name)
    found = cost(ours, name, PHOTO, View("high", max_tokens=ours.default_tokens))
    assert ours.default_tokens // 4 < found <= ours.default_tokens or name in ("gemma3", "gemma4", "smolvlm")
    if name in ("gemma3", "smolvlm", "idefics3", "mllama"):  # these publish a bound of their own
        assert found == cost(ours, name, PHOTO, View("high"))
    if name == "qwen2_5_vl":
        assert cost(ours, name, PHOTO, View()) > 15_000


@pytest.mark.parametrize("name", PUBLISHED)
def test_pixels_of_a_request(name: str, processors: Callable[[str], Processor]) -> None:
    ours = processors(name)
    for shape in SHAPES[:4]:
        for most in (1_000, 200_000, 1_000_000):
            width, height = ours.seen_size(shape, View("high", pixels=Pixels(most=most)))
            assert width * height <= max(most, SMALLEST.get(name, 32) ** 2)
    if name in TILE or name in ("pixtral", "mistral3"):
        with pytest.raises(RequestError, match="tiles of one size" if name in TILE else "makes no image larger"):
            ours.num_tokens("image", PHOTO, View(pixels=Pixels(least=5)))
        return
    width, height = ours.seen_size(Shape(28, 28), View(pixels=Pixels(least=400_000)))
    assert 400_000 <= width * height < (600_000 if name == "gemma4" else 460_000)  # of Gemma 4 the next budget
    limited = View(pixels=Pixels(least=400_000), max_tokens=100)
    assert ours.num_tokens("image", Shape(28, 28), limited) <= 100


@pytest.mark.parametrize("name", PUBLISHED)
def test_pictures_are_what_was_counted(name: str, processors: Callable[[str], Processor]) -> None:
    """Under every kind of limit: the ids that were promised, and the patches that fit them; another way is another picture."""
    ours = processors(name)
    image = np.random.default_rng(1).integers(0, 255, (500, 1400, 3), dtype=np.uint8)
    shape, hashes = Shape(1400, 500), set()
    for view in (View("high"), View("high", max_tokens=900), View("high", pixels=Pixels(most=500_000))):
        made = ours.process("image", Clip([image]), view)
        assert len(made.tokens) == ours.num_tokens("image", shape, view)
        t, h, w = made.grid
        assert len(made.pixels) == t * h * w
        hashes.add((made.mm_hash, made.pixels.shape))
    sizes = {size for _, size in hashes}
    assert len({name for name, _ in hashes}) >= len(sizes)
    assert len(sizes) > 1 or name == "llava"


def test_tiles_of_a_smaller_budget_have_the_numbers_that_the_model_knows(processors: Callable[[str], Processor]) -> None:
    """Llama 3.2 Vision: (across, down) in the order of its shapes of up to four tiles, whatever fewer would be numbered as."""
    ours = processors("mllama")
    image = np.zeros((1300, 600, 3), np.uint8)
    two = ours.process("image", Clip([image]), View(max_tokens=2 * 1601))
    assert two.grid == (2, 40, 40)
    whole = ours.process("image", Clip([np.zeros((1100, 560, 3), np.uint8)]), View())
    assert whole.grid == (2, 40, 40) and two.facts == whole.facts


# --- videos -----------------------------------------------------------------------------------------------------------------


def animation(form: str, durations: list[int]) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (64, 48), (9 * i, 200 - 9 * i, 40)) for i in range(len(durations))]
    frames[0].save(out, form, save_all=True, append_images=frames[1:], duration=durations)
    return out.getvalue()


def clip_of(data: bytes) -> Clip:
    parts = bytearray()
    made = yield_all(decode_bands(Order("it", True, 1 << 24, 1 << 24, 99, 9.0), data), parts)
    frames = np.frombuffer(parts, np.uint8).reshape(made.frames, made.height, made.width, 3)
    return Clip(list(frames), made.times)


def seconds_by_transformers(times: list[float]) -> list[str]:
    """What transformers' processor of Qwen3-VL writes for frames at these times."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    found = Qwen3VLProcessor._calculate_timestamps(None, [round(1000 * t) for t in times], 1000.0, 2)  # type: ignore[arg-type]
    return [f"<{one:.1f} seconds>" for one in found]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
@pytest.mark.parametrize("durations", [[100] * 4, [40] * 7, [2000] * 5, [100, 900, 3000, 250, 40, 500]])
def test_frames_carry_their_times(
    form: str, durations: list[int], processors: Callable[[str], Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, ours, written = clip_of(animation(form, durations)), processors("qwen3_vl"), []
    want = [sum(durations[:i]) / 1000 for i in range(len(durations))]
    assert list(clip.times) == pytest.approx(want, abs=1e-6)
    monkeypatch.setattr(ours._tokenizer, "encode", lambda text, **_: written.append(text) or [0])  # type: ignore[attr-defined]
    ours.process("video", clip, View())
    assert written == seconds_by_transformers(want)


def test_times_of_qwen2_5_vl_are_positions(processors: Callable[[str], Processor]) -> None:
    """tokens_per_second * seconds between two pairs of frames (transformers: second_per_grid_ts)."""
    ours = processors("qwen2_5_vl")
    for interval in (0.1, 0.5, 2.0):
        clip = Clip([np.zeros((56, 56, 3), np.uint8)] * 6, [interval * i for i in range(6)])
        assert ours.process("video", clip, View()).time_step == pytest.approx(2 * 2 * interval)
    assert ours.process("video", Clip([np.zeros((56, 56, 3), np.uint8)] * 6), View()).time_step == 2.0


@pytest.mark.parametrize("rate", [1, 2, 5, 24])
def test_times_of_video_files(rate: int) -> None:
    """Two frames a second are taken, fewer where there are fewer: each has the time at which it is shown."""
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4 * rate):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    order = Order("it", True, 1 << 24, 1 << 24, 99, 9.0, container="mov")
    times = yield_all(decode_bands(order, out.getvalue()), bytearray()).times
    shown = [i / rate for i in range(4 * rate)]
    want = {next(t for t in shown if t + 1e-3 >= due / 2) for due in range(int(2 * shown[-1] + 1))}
    assert list(times) == pytest.approx(sorted(want), abs=1e-3)


def test_frames_without_times_count_as_two_a_second(processors: Callable[[str], Processor]) -> None:
    assert clip_of(animation("GIF", [0, 0, 0])).times == ()
    tokens = processors("qwen3_vl").process("video", Clip([np.zeros((64, 64, 3), np.uint8)] * 3), View()).tokens
    assert tokens.count(IMAGE + 2) == 2
