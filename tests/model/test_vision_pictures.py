"""From pictures to logits: our processors and encoders against transformers' image processors and models, on tiny random
configurations of every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from PIL import Image

from sglang.srt.checkpoint.resolve import resolve_model
from sglang.srt.config import TextOptions
from sglang.srt.errors import RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.intake import TokenLines
from sglang.srt.server.multimodal.processors.base import ModelFolder, Processor
from sglang.srt.server.multimodal.processors.gemma3 import Gemma3Processor
from sglang.srt.server.multimodal.processors.gemma4 import Gemma4Processor
from sglang.srt.server.multimodal.processors.llava import LlavaProcessor
from sglang.srt.server.multimodal.processors.pixtral import PixtralProcessor
from sglang.srt.server.multimodal.processors.registry import create_processor
from sglang.srt.server.multimodal.spans import expand
from sglang.srt.server.tokenization.tokenizer import load_tokenizer
from tests.model.tiny import open_worker
from tests.model.vision import IMAGE, Shown, logits, randomize
from tests.model.vision_families import (
    DELTA,
    EXPERTS,
    GLM_EXPERTS,
    POINTS,
    QWEN2_5,
    QWEN3,
    QWEN3_5,
    gemma3,
    gemma4,
    glm4v,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    mistral3,
    pixtral,
    qwen,
    smolvlm,
)

SPECIAL = ["<image>", "<video>", "<|vision_start|>", "<|vision_end|>", "<fake_token_around_image>", "<global-img>"]
SPECIAL += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
SPECIAL += ["[IMG_BREAK]", "[IMG_END]", "<img>", "</img>"]


@dataclass(frozen=True)
class Case:
    """A family: how transformers makes it, its image processor and that one's settings, and arguments of a forward pass from
    the processor's output for all pictures of a prompt."""

    make: Callable[[], Any]
    processor: tuple[str, str]
    settings: dict[str, Any]
    inputs: Callable[[Any, list[Image.Image]], dict[str, Any]]


def _llava_inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    found = processor(images=[images] if len(images) > 1 else images, return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}


def _smolvlm_inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    import torch

    tiles = [processor(images=[image], return_tensors="np")["pixel_values"][0] for image in images]
    return {"pixel_values": torch.from_numpy(np.concatenate(tiles))[None]}


def _qwen_inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    found = processor(images=images, return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "image_grid_thw")}


_PIXELS = {"size": {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}, "patch_size": 7}
_QWEN_PROCESSOR = ("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil")


def _gemma3_inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    return {"pixel_values": processor(images=images, return_tensors="pt")["pixel_values"]}


def _gemma4_inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    found = processor(images=images, return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "image_position_ids")}


def _llava_one_inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    return {"pixel_values": processor(images=images, return_tensors="pt")["pixel_values"]}


def _llava_next_inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    found = processor(images=images, return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "image_sizes")}


def _pixtral_inputs(unit: int) -> Callable[[Any, list[Image.Image]], dict[str, Any]]:
    def inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
        import torch

        found = processor(images=images, return_tensors="pt", patch_size={"height": unit, "width": unit})
        return {"pixel_values": found["pixel_values"], "image_sizes": torch.as_tensor(found["image_sizes"])}

    return inputs


def _internvl_inputs(processor: Any, images: list[Image.Image]) -> dict[str, Any]:
    return {"pixel_values": processor(images=images, return_tensors="pt", crop_to_patches=True)["pixel_values"]}


_CLIP_PROCESSOR = ("clip.image_processing_pil_clip", "CLIPImageProcessorPil")
_NEXT_PROCESSOR = ("llava_next.image_processing_pil_llava_next", "LlavaNextImageProcessorPil")
_PIXTRAL_PROCESSOR = ("pixtral.image_processing_pil_pixtral", "PixtralImageProcessorPil")
_INTERNVL_PROCESSOR = ("got_ocr2.image_processing_pil_got_ocr2", "GotOcr2ImageProcessorPil")
_GEMMA4_PROCESSOR = ("gemma4.image_processing_pil_gemma4", "Gemma4ImageProcessorPil")
_BUDGET = {"patch_size": 4, "pooling_kernel_size": 3, "max_soft_tokens": 140}
_GLM_PROCESSOR = ("glm4v.image_processing_pil_glm4v", "Glm4vImageProcessorPil")
_GLM46_PROCESSOR = ("glm46v.image_processing_pil_glm46v", "Glm46VImageProcessorPil")
_GLM_PIXELS = {"size": {"shortest_edge": 28 * 28, "longest_edge": 2 * 84 * 84}, "patch_size": 7}
_CROPPED = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
_TILES = {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 28}}
CASES = {
    "gemma3": Case(
        gemma3,
        ("gemma3.image_processing_pil_gemma3", "Gemma3ImageProcessorPil"),
        {"size": {"height": 28, "width": 28}},
        _gemma3_inputs,
    ),
    "gemma4": Case(gemma4, _GEMMA4_PROCESSOR, _BUDGET, _gemma4_inputs),
    "gemma4, large": Case(
        lambda: gemma4(
            {"use_clipped_linears": True, "standardize": True}, use_bidirectional_attention="vision", num_kv_shared_layers=2
        ),
        _GEMMA4_PROCESSOR,
        _BUDGET,
        _gemma4_inputs,
    ),
    "qwen2_5_vl": Case(lambda: qwen("Qwen2_5_VL", QWEN2_5), _QWEN_PROCESSOR, _PIXELS, _qwen_inputs),
    "qwen3_vl": Case(lambda: qwen("Qwen3VL", QWEN3), _QWEN_PROCESSOR, _PIXELS, _qwen_inputs),
    "qwen3_vl_moe": Case(lambda: qwen("Qwen3VLMoe", QWEN3, **EXPERTS), _QWEN_PROCESSOR, _PIXELS, _qwen_inputs),
    "qwen3_5": Case(lambda: qwen("Qwen3_5", QWEN3_5, **DELTA), _QWEN_PROCESSOR, _PIXELS, _qwen_inputs),
    "qwen3_5_moe": Case(
        lambda: qwen("Qwen3_5Moe", QWEN3_5, **DELTA, **EXPERTS, shared_expert_intermediate_size=48),
        _QWEN_PROCESSOR,
        _PIXELS,
        _qwen_inputs,
    ),
    "glm4v": Case(
        glm4v,
        _GLM_PROCESSOR,
        _GLM_PIXELS,
        _qwen_inputs,
    ),
    "glm4v_moe": Case(lambda: glm4v("Glm4vMoe", **GLM_EXPERTS), _GLM_PROCESSOR, _GLM_PIXELS, _qwen_inputs),
    "glm46v": Case(lambda: glm4v("Glm46V", "glm4v_moe_text", **GLM_EXPERTS), _GLM46_PROCESSOR, _GLM_PIXELS, _qwen_inputs),
    "llava": Case(llava, _CLIP_PROCESSOR, _CROPPED, _llava_one_inputs),
    "llava_next": Case(llava_next, _NEXT_PROCESSOR, {**_CROPPED, "image_grid_pinpoints": POINTS}, _llava_next_inputs),
    "pixtral": Case(
        pixtral, _PIXTRAL_PROCESSOR, {"size": {"longest_edge": 56}, "patch_size": {"height": 7, "width": 7}}, _pixtral_inputs(7)
    ),
    "mistral3": Case(
        mistral3,
        _PIXTRAL_PROCESSOR,
        {"size": {"longest_edge": 84}, "patch_size": {"height": 7, "width": 7}},
        _pixtral_inputs(14),
    ),
    "internvl": Case(internvl, _INTERNVL_PROCESSOR, {"size": {"height": 28, "width": 28}, "max_patches": 5}, _internvl_inputs),
    "llava_onevision": Case(
        llava_onevision,
        ("llava_onevision.image_processing_pil_llava_onevision", "LlavaOnevisionImageProcessorPil"),
        {
            "size": {"height": 28, "width": 28},
            "image_grid_pinpoints": [[28, 28], [28, 56], [56, 28], [56, 56], [28, 112], [112, 28], [84, 84]],
        },
        _llava_inputs,
    ),
    "smolvlm": Case(smolvlm, ("smolvlm.image_processing_pil_smolvlm", "SmolVLMImageProcessorPil"), _TILES, _smolvlm_inputs),
    "idefics3": Case(
        lambda: smolvlm("Idefics3"),
        ("idefics3.image_processing_pil_idefics3", "Idefics3ImageProcessorPil"),
        _TILES,
        _smolvlm_inputs,
    ),
}
PROMPTS: dict[str, list[Any]] = {
    "none": [[5, 9, 30]],
    "one": [[5], (50, 31), [17, 33]],
    "one, tall": [[5], (20, 70), [17]],
    "one, large": [(90, 88), [17]],
    "several, mixed sizes, text between": [[3], (28, 28), [7, 8], (64, 40), [9], (30, 90), [11]],
}


def picture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def save_tokenizer(folder: Path) -> None:
    words = {f"w{i}": i for i in range(IMAGE)} | {"\n": 230, "\n\n": 231}
    for i, name in enumerate(SPECIAL):
        words[name] = IMAGE + i
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")


@dataclass
class Family:
    case: Case
    folder: Path
    model: Any
    image_processor: Any
    ours: Processor
    lines: TokenLines


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(CASES[request.param], tmp_path_factory.mktemp(request.param))


def make_family(case: Case, folder: Path) -> Family:
    """A random model of the family in `folder`, and both image processors."""
    import importlib

    model = randomize(case.make(), 3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    module, name = case.processor
    theirs = getattr(importlib.import_module(f"transformers.models.{module}"), name)(**case.settings)
    settings = {"image_processor_type": name.removesuffix("Pil"), **case.settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(TextOptions(str(folder)), resolve_model(str(folder)))
    return Family(case, folder, model, theirs, create_processor(ModelFolder(folder, tokenizer)), TokenLines(tokenizer))


@pytest.fixture(params=["reference", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return ReferenceOps() if request.param == "reference" else CpuOps(2)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits(family: Family, ops: Ops, prompt: str) -> None:
    check_logits(family, ops, PROMPTS[prompt])


def check_logits(family: Family, ops: Ops, prompt: list[Any]) -> None:
    """Compares every position of a prompt, whose pictures are given by their sizes, with transformers."""
    import torch

    rng = np.random.default_rng(5)
    parts = [part if isinstance(part, list) else picture(rng, part) for part in prompt]
    images = [part for part in parts if isinstance(part, Image.Image)]
    pictures = [family.ours.process("image", Clip([np.asarray(image)]), View(alone=len(images) == 1)) for image in images]
    bare = [i for part in parts for i in (part if isinstance(part, list) else [family.ours.placeholders["image"]])]
    ids, spans = expand(bare, pictures, family.ours.placeholders, family.ours.image_token, family.lines)
    items = tuple(
        MediaItem("image", p.mm_hash, tuple(found), p.pixels.tobytes(), p.pixels.shape, p.grid, p.facts)
        for p, found in zip(pictures, spans, strict=True)
    )
    inputs = family.case.inputs(family.image_processor, images) if images else {}
    axes = family.ours.positions(len(ids), list(zip(pictures, spans, strict=True)))
    if isinstance(family.ours, Gemma3Processor):
        inputs["token_type_ids"] = torch.tensor([[int(i == IMAGE) for i in ids]])
    if images and (axes is not None or isinstance(family.ours, Gemma4Processor)):
        inputs["mm_token_type_ids"] = torch.tensor([[int(i == IMAGE) for i in ids]])
    with torch.no_grad():
        want = np.asarray(family.model(input_ids=torch.tensor([ids]), **inputs).logits[0])
    worker = open_worker(family.folder, ops, max_total_tokens=8192)
    shown = Shown(ids, items, *(axes or (None, 0)), bidirectional_images=worker.info.bidirectional_images)
    got = logits(worker, shown, chunk=10**6 if shown.bidirectional_images else 512)
    tolerance = 3e-4 if isinstance(ops, ReferenceOps) else 2e-2  # the native kernels keep K and V in 16 bits
    assert np.abs(want).max() > 1
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()


def test_low_detail_takes_fewer_rows(family: Family) -> None:
    if family.ours.positions(0, []) is not None or isinstance(family.ours, PixtralProcessor):
        pytest.skip("pictures of this family are never large enough here: low detail means 512 x 512 pixels")
    image = picture(np.random.default_rng(6), (90, 88))
    low, high = (family.ours.process("image", Clip([np.asarray(image)]), View(detail)) for detail in ("low", "high"))  # type: ignore[arg-type]
    if isinstance(family.ours, (Gemma3Processor, LlavaProcessor)):
        assert low.tokens == high.tokens  # it is no long picture, or one tile in any case
        return
    assert len(low.tokens) < len(high.tokens) and low.mm_hash != high.mm_hash


SIZES = [(1, 1), (1, 150), (150, 1), (2, 3), (27, 29), (28, 28), (56, 55), (84, 85), (90, 88), (113, 30), (30, 113), (640, 480)]
SIZES += [(800, 260), (260, 800), (1000, 999), (300, 1500)]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("detail", ["auto", "low", "high"])
def test_tokens_are_counted_from_the_size_alone(family: Family, detail: Any, alone: bool) -> None:
    """Images of any shape are accepted, or refused with a sentence, and have the predicted number of tokens."""
    for kind in family.ours.kinds:
        for width, height in SIZES:
            frames = [np.zeros((height, width, 3), np.uint8)] * (3 if kind == "video" else 1)
            try:
                counted = family.ours.num_tokens(kind, Shape(width, height, len(frames)), View(detail, alone))
            except RequestError:
                with pytest.raises(RequestError):
                    family.ours.process(kind, Clip(frames), View(detail, alone))
                continue
            try:
                made = family.ours.process(kind, Clip(frames), View(detail, alone))
            except RequestError:
                continue
            assert counted == len(made.tokens), (kind, width, height)


def test_long_pictures_in_pieces(family: Family) -> None:
    """Gemma 3's pan and scan, which "high" detail asks for: pieces as transformers cuts them, each with its tokens."""
    if not isinstance(family.ours, Gemma3Processor):
        pytest.skip("of Gemma 3 only")
    image = picture(np.random.default_rng(7), (800, 260))
    found = family.ours.process("image", Clip([np.asarray(image)]), View("high"))
    options = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 256, "pan_and_scan_max_num_crops": 4}
    theirs = family.image_processor(images=[image], return_tensors="np", pan_and_scan_min_ratio_to_activate=1.2, **options)
    count = int(np.ravel(theirs["num_crops"])[0])
    assert count == 3 and found.grid[0] == 1 + count == len(theirs["pixel_values"])
    assert found.tokens.count(IMAGE) == 4 * (1 + count) and found.newlines == (0, 2)
    tile = theirs["pixel_values"][2, :, :7, :7].reshape(-1)
    assert np.array_equal(found.pixels.reshape(1 + count, 16, -1)[2, 0], tile)


def test_the_engine_generates_what_transformers_does(family: Family) -> None:
    """All prompts at once, cut into small steps, through intake, scheduler and worker; with reference kernels, in float32."""
    import torch

    import sglang

    rng = np.random.default_rng(8)
    prompts: list[list[int]] = []
    shown: list[list[Image.Image]] = []
    for parts in PROMPTS.values():
        images = [picture(rng, part) for part in parts if isinstance(part, tuple)]
        prompts.append([i for part in parts for i in (part if isinstance(part, list) else [family.ours.placeholders["image"]])])
        shown.append(images)
    options = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
    flags: dict[str, Any] = {"kernels": "reference", "max_total_tokens": 2048, "chunked_prefill_size": 24, "threads": 1}
    with sglang.Engine(model_path=str(family.folder), **flags) as engine:
        replies = engine.generate(input_ids=prompts, sampling_params=options, image_data=shown)
        again = engine.generate(input_ids=prompts, sampling_params=options, image_data=shown)
    for number, (bare, images) in enumerate(zip(prompts, shown, strict=True)):
        meta = replies[number]["meta_info"]
        assert again[number]["output_ids"] == replies[number]["output_ids"]
        assert again[number]["meta_info"]["cached_tokens"] == meta["prompt_tokens"] - 1
        pictures = [family.ours.process("image", Clip([np.asarray(image)]), View(alone=len(images) == 1)) for image in images]
        ids, spans = expand(bare, pictures, family.ours.placeholders, family.ours.image_token, family.lines)
        assert meta["prompt_tokens"] == len(ids)
        inputs = family.case.inputs(family.image_processor, images) if images else {}
        if isinstance(family.ours, Gemma3Processor):
            inputs["token_type_ids"] = torch.tensor([[int(i == IMAGE) for i in ids]])
        if images and (family.ours.positions(0, []) is not None or isinstance(family.ours, Gemma4Processor)):
            inputs["mm_token_type_ids"] = torch.tensor([[int(i == IMAGE) for i in ids]])
        with torch.no_grad():
            out = family.model.generate(
                input_ids=torch.tensor([ids]),
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **inputs,
            )
        assert replies[number]["output_ids"] == out[0, len(ids) :].tolist(), number


@pytest.mark.parametrize("family", ["qwen3_vl"], indirect=True)
def test_videos_with_times(family: Family, ops: Ops) -> None:
    """Qwen3-VL: each pair of frames is a picture of its own, its time before it. The last of an odd number stands twice."""
    import torch

    rng = np.random.default_rng(11)
    frames = [picture(rng, (50, 40)) for _ in range(5)]
    video = family.ours.process("video", Clip([np.asarray(frame) for frame in frames]), View())
    t, place, rows = video.grid[0], IMAGE + 1, video.grid[1] * video.grid[2] // 4
    unknown = 0  # what this tokenizer has for a time
    assert t == 3 and video.tokens == (unknown, IMAGE + 2, *[place] * rows, IMAGE + 3) * 3
    still = family.ours.process("image", Clip([np.asarray(picture(rng, (28, 28)))]), View(alone=False))
    ids, spans = expand(
        [5, IMAGE + 2, place, IMAGE + 3, 17, IMAGE, 9], [video, still], family.ours.placeholders, family.ours.image_token
    )
    assert ids == [5, *video.tokens, 17, *still.tokens, 9] and len(spans[0]) == 3
    items = tuple(
        MediaItem(p.kind, p.mm_hash, tuple(found), p.pixels.tobytes(), p.pixels.shape, p.grid, p.facts)
        for p, found in zip([video, still], spans, strict=True)
    )
    with torch.no_grad():
        want = np.asarray(
            family.model(
                input_ids=torch.tensor([ids]),
                pixel_values=torch.from_numpy(still.pixels),
                image_grid_thw=torch.tensor([still.grid]),
                pixel_values_videos=torch.from_numpy(video.pixels),
                video_grid_thw=torch.tensor([video.grid]),
                mm_token_type_ids=torch.tensor([[int(i == IMAGE) + 2 * int(i == place) for i in ids]]),
            ).logits[0]
        )
    axes = family.ours.positions(len(ids), list(zip([video, still], spans, strict=True)))
    got = logits(open_worker(family.folder, ops), Shown(ids, items, *(axes or (None, 0))))
    tolerance = 3e-4 if isinstance(ops, ReferenceOps) else 2e-2
    assert np.abs(got - want).max() < tolerance * np.abs(want).max()


@pytest.mark.parametrize("family", ["qwen3_vl"], indirect=True)
def test_times_as_they_are_written(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    ours: Any = family.ours
    monkeypatch.setattr(ours._tokenizer, "encode", lambda text, **_: written.append(text) or [0])
    family.ours.process("video", Clip([np.asarray(picture(np.random.default_rng(1), (28, 28)))] * 7), View())
    assert written == ["<0.2 seconds>", "<1.2 seconds>", "<2.2 seconds>", "<3.0 seconds>"]


@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
def test_steps_smaller_than_a_picture_that_must_not_be_cut(family: Family) -> None:
    """Steps grow to hold one; answers are those of large steps."""
    import sglang

    rng = np.random.default_rng(10)
    images = [picture(rng, (50, 31)), picture(rng, (20, 70))]
    place = family.ours.placeholders["image"]
    options = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    found = []
    for chunk in (512, 1, 3):
        flags: dict[str, Any] = {"chunked_prefill_size": chunk, "max_total_tokens": 1024, "threads": 2}
        with sglang.Engine(model_path=str(family.folder), **flags) as engine:
            prompt = [5, place, 17, 33, place, 9]
            replies = engine.generate(input_ids=[prompt] * 2, sampling_params=options, image_data=[images, images[::-1]])
            found.append([reply["output_ids"] for reply in replies])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "smolvlm"], indirect=True)
def test_retraction_and_other_steps_change_nothing(family: Family) -> None:
    """Native kernels: the same log probabilities to the last bit with small steps, without the prefix cache, and when requests
    are thrown out of the batch and begin again."""
    import sglang

    rng = np.random.default_rng(9)
    shown = [[picture(rng, (50, 31))], [picture(rng, (20, 70)), picture(rng, (64, 40))], []]
    place = family.ours.placeholders["image"]
    prompts = [[5, place, 17, 33], [3, place, 9, place, 7, 8], [4, 4, 6]]
    options = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    found = []
    for flags in (
        {"chunked_prefill_size": 512},
        {"chunked_prefill_size": 20, "disable_radix_cache": True},
        {"test_retract_every": 2},
    ):
        with sglang.Engine(model_path=str(family.folder), max_total_tokens=1024, threads=2, **flags) as engine:
            replies = engine.generate(input_ids=prompts * 2, sampling_params=options, image_data=shown * 2, return_logprob=True)
            found.append([reply["meta_info"]["output_token_logprobs"] for reply in replies])
            if "test_retract_every" in flags:
                assert sum(reply["meta_info"]["num_retractions"] for reply in replies) > 0
    assert found[0] == found[1] == found[2]
