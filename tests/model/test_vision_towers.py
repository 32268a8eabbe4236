"""What configs of towers and connectors may say besides: the layers whose rows are taken, a tower of another kind, norms, biases, the
decoder's family and what published configs leave out of it; and that rows do not depend on the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import ModelError, RequestError
from sglang.srt.media_item import MediaItem
from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.weights.config_reader import parse_model_config
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.llava import LlavaProcessor
from tests.model.test_vision_pictures import CASES, PROMPTS, check_logits, make_family, picture
from tests.model.tiny import open_worker
from tests.model.vision import embed
from tests.model.vision_families import glm4v, internvl, llava, llava_next, mistral3, pixtral

SIGLIP_PROCESSOR = ("siglip.image_processing_pil_siglip", "SiglipImageProcessorPil")
INTERNVIT = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": True, "use_mean_pooling": False}
MAKES: dict[str, tuple[str, Callable[[], Any]]] = {
    "several layers": ("llava", lambda: llava([-2, 1, -1])),
    "the embeddings too": ("llava", lambda: llava([0, 2])),
    "full": ("llava", lambda: llava(strategy="full")),
    "no biases": ("llava", lambda: llava(-1, multimodal_projector_bias=False)),
    "SigLIP": ("llava", lambda: llava([0, -1], "full", "Siglip")),
    "SigLIP without its first row": ("llava", lambda: llava(-2, "default", "Siglip")),
    "NeXT, SigLIP": ("llava_next", lambda: llava_next("Siglip", [-3, 1, -1], "full")),
    "Pixtral, an earlier layer": ("pixtral", lambda: pixtral(-2)),
    "GLM-4.6V-Flash": ("glm4v", lambda: glm4v("Glm46V", "glm4v_text")),
    "InternViT": ("internvl", lambda: internvl(**INTERNVIT)),
}


@pytest.mark.parametrize("name", MAKES)
def test_settings_of_towers(name: str, tmp_path: Path) -> None:
    kind, make = MAKES[name]
    case = replace(CASES[kind], make=make)
    if name.startswith("SigLIP"):
        case = replace(case, processor=SIGLIP_PROCESSOR, settings={"size": {"height": 28, "width": 28}})
    check_logits(make_family(case, tmp_path), ReferenceOps(), PROMPTS["several, mixed sizes, text between"])


@pytest.mark.parametrize("name", ["llava", "llava_next", "mistral3", "internvl", "gemma4, large"])
def test_rows_do_not_depend_on_the_batch(name: str, tmp_path: Path) -> None:
    """With native kernels: encoded together or alone, the same bits."""
    family, rng = make_family(CASES[name], tmp_path), np.random.default_rng(2)
    items = []
    for size in ((50, 31), (20, 70), (90, 88)):
        made = family.ours.process("image", Clip([np.asarray(picture(rng, size))]), View())
        rows = made.tokens.count(made.row_id)
        items.append(
            MediaItem("image", made.mm_hash, ((0, rows),), made.pixels.tobytes(), made.pixels.shape, made.grid, made.facts)
        )
    together, other = embed(open_worker(tmp_path, CpuOps(2)), items), open_worker(tmp_path, CpuOps(2))
    for item in items:
        alone = embed(other, [item])[item.mm_hash]
        assert alone.embedding.tobytes() == together[item.mm_hash].embedding.tobytes()


VISION = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model"}
VISION |= {"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14}


def test_what_published_configs_leave_out() -> None:
    """llava-hf/llava-1.5-7b-hf and llava-hf/llava-v1.6-mistral-7b-hf say nothing of their decoder's width and depth."""
    text = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32064}
    top = {"image_token_index": 32000, "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    raw = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", **top, "vision_config": VISION}
    found = parse_model_config({**raw, "text_config": text}, Path("config.json"), {})
    assert (found.hidden_size, found.num_layers, found.num_heads, found.intermediate_size) == (4096, 32, 32, 11008)
    assert found.vision is not None and (found.vision.num_layers, found.vision.activation) == (23, "quick_gelu")
    text = {"intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "num_key_value_heads": 8}
    text |= {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None, "vocab_size": 32064}
    raw |= {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
    found = parse_model_config({**raw, "text_config": text}, Path("config.json"), {})
    assert (found.hidden_size, found.num_kv_heads, found.sliding_window, found.context_len) == (4096, 8, 0, 32768)


def test_ministral_3_with_images() -> None:
    """Its decoder is a family of its own behind Mistral 3's class."""
    import transformers as t

    config = t.Mistral3Config(text_config=t.Ministral3Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2))
    raw = {**json.loads(config.to_json_string()), "architectures": ["Mistral3ForConditionalGeneration"]}
    found = parse_model_config(raw, Path("config.json"), {})
    assert found.query_growth is not None and found.vision is not None and found.vision.kind == "mistral3"


@pytest.mark.parametrize(
    ("make", "at", "value", "said"),
    [
        (llava, "vision_feature_layer", [], "vision_feature_layer"),
        (llava, "vision_feature_layer", 9, "vision_feature_layer"),
        (llava, "vision_feature_select_strategy", "x", "vision_feature_select_strategy"),
        (llava_next, "vision_feature_select_strategy", "full", "rows of a tile"),
        (pixtral, "vision_feature_select_strategy", "default", "must be full"),
        (mistral3, "vision_feature_layer", [1, 2], "one layer"),
        (mistral3, "spatial_merge_size", 1 << 20, "spatial_merge_size"),
        (internvl, "downsample_ratio", 0.3, "downsample_ratio"),
        (internvl, "vision_feature_layer", -2, "vision_feature_layer"),
        (llava, "text_config", {"model_type": "llava"}, "model_type"),
    ],
)
def test_settings_that_mean_nothing_here(make: Callable[[], Any], at: str, value: Any, said: str) -> None:
    model = make()
    raw = {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__], at: value}
    with pytest.raises(ModelError, match=said):
        parse_model_config(raw, Path("config.json"), {})


def test_thin_pictures_are_refused_before_they_are_resized(tmp_path: Path) -> None:
    """The shorter side is brought to a size: the longer one would follow without a limit."""
    family = make_family(CASES["llava"], tmp_path)
    assert isinstance(family.ours, LlavaProcessor)
    assert family.ours.num_tokens("image", Shape(200, 1), View()) == 16
    for shape in (Shape(1, 60000), Shape(201, 1)):
        with pytest.raises(RequestError, match="200 times"):
            family.ours.num_tokens("image", shape, View())


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl"])
def test_tiles_of_another_size_than_the_encoders_are_refused(name: str, tmp_path: Path) -> None:
    settings = {"size": {"height": 35, "width": 35}} if name == "internvl" else {"size": {"shortest_edge": 35}}
    more = {} if name == "internvl" else {"crop_size": {"height": 35, "width": 35}}
    with pytest.raises(ModelError, match="35 x 35 pixels, and the encoder's are 28 x 28"):
        make_family(replace(CASES[name], settings={**settings, **more}), tmp_path)
