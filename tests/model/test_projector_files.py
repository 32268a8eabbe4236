"""Models that see as llama.cpp has them: the decoder in one .gguf file and its encoder in an `mmproj` file beside it. Both are written
here under the names that the `gguf` package has; logits of prompts with pictures are those of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint.projector import beside
from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import ModelOptions
from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.cpu import CpuOps
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.weights.loader import read_config
from sglang.srt.server.multimodal.processors.base import open_folder
from sglang.srt.server.multimodal.processors.registry import create_processor
from tests.model import test_dense_files as dense
from tests.model.test_vision_pictures import (
    _QWEN_PROCESSOR,
    CASES,
    PROMPTS,
    Case,
    Family,
    _qwen_inputs,
    check_logits,
    make_family,
)
from tests.model.tiny import open_worker
from tests.model.vision import IMAGE
from tests.model.vision_families import QWEN, gemma4, internvl, qwen

gguf = pytest.importorskip("gguf")

QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
QWEN2 = {name: size for name, size in QWEN.items() if name not in ("out_hidden_size", "intermediate_size")}
PIXELS = {"size": {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}, "patch_size": 7}
ALL_CASES = {
    **CASES,
    "pixtral": replace(CASES["pixtral"], settings=CASES["mistral3"].settings),
    "internvl, InternViT": replace(
        CASES["internvl"], make=lambda: internvl(norm_type="rms_norm", use_qk_norm=True, attention_bias=True)
    ),
    "gemma4, large": replace(
        CASES["gemma4"],
        make=lambda: gemma4(
            {"use_clipped_linears": True, "standardize": True},
            use_bidirectional_attention="vision",
            hidden_size_per_layer_input=0,
        ),
    ),
    "qwen2_vl": Case(
        lambda: qwen("Qwen2VL", {**QWEN2, "embed_dim": 64, "mlp_ratio": 2}), _QWEN_PROCESSOR, PIXELS, _qwen_inputs
    ),
}


@dataclass(frozen=True)
class Pair:
    """`arch`: of the decoder; `tokens`: from IMAGE on; `more`: of the encoder's metadata, in the writer's own methods."""

    arch: str
    kind: str
    tokens: tuple[str, ...]
    more: Callable[[Any, Any], None]
    prefix: str


def more_gemma3(w: Any, config: Any) -> None:
    w.add_uint32("clip.vision.projector.scale_factor", 2)


def more_idefics3(w: Any, config: Any) -> None:
    w.add_vision_projector_scale_factor(2)
    w.add_uint32("clip.vision.preproc_image_size", 84)


def more_qwen(w: Any, config: Any) -> None:
    w.add_vision_spatial_merge_size(2)
    w.add_uint32("clip.vision.image_min_pixels", 28 * 28)
    w.add_uint32("clip.vision.image_max_pixels", 84 * 84)


def more_qwen2_5(w: Any, config: Any) -> None:
    more_qwen(w, config)
    w.add_vision_n_wa_pattern(config.fullatt_block_indexes[0] + 1)
    w.add_uint32("clip.vision.window_size", config.window_size)


def more_qwen3(w: Any, config: Any) -> None:
    more_qwen(w, config)
    w.add_array("clip.vision.is_deepstack_layers", [i in config.deepstack_visual_indexes for i in range(config.depth)])


def more_gemma4(w: Any, config: Any) -> None:
    w.add_uint32("clip.vision.projector.scale_factor", 3)
    w.add_uint32("clip.vision.image_max_pixels", 140 * 12**2)


def more_pixtral(w: Any, config: Any) -> None:
    (w.add_vision_use_silu if config.hidden_act == "silu" else w.add_vision_use_gelu)(True)


def more_mistral3(w: Any, config: Any) -> None:
    more_pixtral(w, config)
    w.add_vision_spatial_merge_size(2)


def more_internvl(w: Any, config: Any) -> None:
    w.add_vision_projector_scale_factor(2)
    w.add_uint32("clip.vision.preproc_max_tiles", 5)


GEMMA_TOKENS = ("<image_soft_token>", "?", "<start_of_image>", "<end_of_image>")
PAIRS = {
    "gemma3": Pair("gemma3", "gemma3", GEMMA_TOKENS, more_gemma3, "model.vision_tower."),
    "gemma4": Pair("gemma4", "gemma4v", ("<|image|>", "?", "<|image>", "<image|>"), more_gemma4, "model.vision_tower."),
    "gemma4, large": Pair("gemma4", "gemma4v", ("<|image|>", "?", "<|image>", "<image|>"), more_gemma4, "model.vision_tower."),
    "pixtral": Pair("llama", "pixtral", ("[IMG]",), more_pixtral, "vision_tower."),
    "mistral3": Pair("mistral3", "pixtral", ("[IMG]",), more_mistral3, "vision_tower."),
    "internvl": Pair("qwen2", "internvl", ("<IMG_CONTEXT>",), more_internvl, "model.vision_tower."),
    "internvl, InternViT": Pair("qwen2", "internvl", ("<IMG_CONTEXT>",), more_internvl, "model.vision_tower."),
    "idefics3": Pair("llama", "idefics3", ("<image>",), more_idefics3, "model.vision_model."),
    "qwen2_vl": Pair("qwen2vl", "qwen2vl_merger", QWEN_TOKENS, more_qwen, "model.visual."),
    "qwen2_5_vl": Pair("qwen2vl", "qwen2.5vl_merger", QWEN_TOKENS, more_qwen2_5, "model.visual."),
    "qwen3_vl": Pair("qwen3vl", "qwen3vl_merger", QWEN_TOKENS, more_qwen3, "model.visual."),
}


def write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_text(path: Path, pair: Pair, model: Any) -> None:
    config = model.config.text_config
    writer = gguf.GGUFWriter(str(path), pair.arch)
    kind = "gemma4_text" if pair.arch == "gemma4" else pair.arch
    if kind == "gemma4_text":
        config.allow_global_per_layer_attribute_access = True
        writer.add_pad_token_id(config.pad_token_id)
    dense.write_metadata(writer, kind, config)
    tokens = [f"w{i}" for i in range(config.vocab_size)]
    tokens[IMAGE : IMAGE + len(pair.tokens)] = pair.tokens
    writer.add_token_list(tokens)
    if "mrope_section" in config.rope_parameters:
        writer.add_rope_dimension_sections([*config.rope_parameters["mrope_section"], 0])
    by_name = {text: kind for kind, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(by_name[pair.arch], config.num_hidden_layers)
    for key, value in dense.rope_freqs(kind, config, {}).items():
        writer.add_tensor(key, value)
    for key, value in model.state_dict().items():
        match = re.fullmatch(r"model\.(?:language_model|text_model)\.(.*)", key)
        if match is None and (key != "lm_head.weight" or model.config.tie_word_embeddings):
            continue
        name = "lm_head.weight" if match is None else f"model.{match[1]}"
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        stored = f"{names.get_name(name)}.weight" if name.endswith("layer_scalar") else stored
        assert stored is not None, name
        values = dense.converted(pair.arch, pair.arch, name, value.numpy(), config)
        values = values + 1 if pair.arch == "gemma3" and name.endswith("norm.weight") else values
        writer.add_tensor(stored, np.ascontiguousarray(values, np.float32))
    write(writer)


OURS = {
    "visual.merger.norm": "v.post_ln",
    "visual.merger.linear_fc1": "mm.0",
    "visual.merger.linear_fc2": "mm.2",
    "visual.pos_embed": "v.position_embd",
    "vision_tower.embeddings.position_embeddings": "v.position_embd.weight",
    "multi_modal_projector.layer_norm": "mm.model.mlp.0",
    "multi_modal_projector.linear_1": "mm.model.mlp.1",
    "multi_modal_projector.linear_2": "mm.model.mlp.3",
    "multi_modal_projector.mm_input_projection_weight": "mm.input_projection.weight",
}
"""names that the converter has in its own code"""


SUFFIXES = (".weight", ".bias", ".input_max", ".input_min", ".output_max", ".output_min")


def gemma4_tensors(model: Any, form: type) -> dict[str, Any]:
    names, found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 8), {}
    for key, tensor in model.state_dict().items():
        if key.startswith(("model.language_model", "lm_head")):
            continue
        value = tensor.numpy()
        name = key.replace("model.vision_tower.encoder.", "vision_model.model.").replace(".linear.weight", ".weight")
        name += ".weight" if name.endswith("position_embedding_table") else ""
        if "input_proj" in name:
            value = value.reshape(len(value), 4, 4, 3).transpose(0, 3, 1, 2)
        stored = names.get_name(name, try_suffixes=SUFFIXES)
        assert stored is not None, name
        value = value.reshape(1) if value.ndim == 0 else value
        small = value.ndim == 1 or "position" in stored
        found[stored] = np.ascontiguousarray(value, np.float32 if small else form)
    return found


def vision_tensors(pair: Pair, model: Any, form: type) -> dict[str, Any]:
    """The encoder's tensors as llama.cpp's converter writes them."""
    if pair.arch == "gemma4":
        return gemma4_tensors(model, form)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 8)
    found: dict[str, Any] = {}
    deep = list(getattr(model.config.vision_config, "deepstack_visual_indexes", []))
    ours = {k: v for k, v in OURS.items() if pair.kind != "pixtral" or "linear" not in k}
    for key, tensor in model.state_dict().items():
        if key.startswith(("model.language_model", "model.text_model", "lm_head", "model.vision_tower.head.")):
            continue
        value = tensor.numpy()
        bare = key.removeprefix("model.")
        stem, _, kind = bare.rpartition(".")
        if match := re.fullmatch(r"visual\.deepstack_merger_list\.(\d+)\.(?:linear_)?(\w+)", stem):
            stored = f"v.deepstack.{deep[int(match[1])]}.{match[2]}.{kind}"
        elif bare in ours or stem in ours:
            stored = ours[bare] if bare in ours else f"{ours[stem]}.{kind}"
        elif ".lambda_" in bare:
            stored = f"{names.get_name(key)}.weight"
        else:
            options = (
                key,
                bare,
                bare.replace("vision_tower.", "vision_tower.vision_model."),
                bare.replace("vision_model.", "model.vision_model."),
            )
            stored = next(n for each in options if (n := names.get_name(each, try_suffixes=(".weight", ".bias"))))
        if re.search(r"transformer\.layers\.\d+\.attention\.[qk]_proj", bare):  # Pixtral's, for interleaved rotation
            heads = model.config.vision_config.num_attention_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if "soft_emb_norm" in stored:
            value = value + 1
        if "attn_qkv" in stored and pair.kind != "qwen3vl_merger":
            for x, part in zip("qkv", np.split(value, 3), strict=True):
                found[stored.replace("qkv", x)] = part
        elif stored == "v.patch_embd.weight" and value.ndim == 5:
            found[stored], found[f"{stored}.1"] = value[:, :, 0], value[:, :, 1]
        else:
            found[stored] = value
    return {name: np.ascontiguousarray(v, form if v.ndim > 1 else np.float32) for name, v in found.items()}


def save_projector(path: Path, pair: Pair, model: Any, form: type = np.float32, change: Any = None) -> None:
    config = model.config.vision_config
    writer = gguf.GGUFWriter(str(path), "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(pair.kind)
    width = config.embed_dim if pair.kind == "qwen2vl_merger" else config.hidden_size
    writer.add_vision_embedding_length(width)
    writer.add_vision_feed_forward_length(1)  # files of Qwen2-VL say something else than its width: tensors count
    writer.add_vision_block_count(getattr(config, "depth", None) or config.num_hidden_layers)
    writer.add_vision_head_count(getattr(config, "num_heads", None) or config.num_attention_heads)
    patch, side = config.patch_size, getattr(config, "image_size", 560)
    writer.add_vision_patch_size(patch if isinstance(patch, int) else patch[0])
    writer.add_vision_image_size(side if isinstance(side, int) else side[0])
    writer.add_vision_attention_layernorm_eps(getattr(config, "layer_norm_eps", 1e-6))
    clip = pair.kind.startswith(("qwen", "pixtral", "internvl"))
    writer.add_vision_image_mean([0.48145466, 0.4578275, 0.40821073] if clip else [0.5] * 3)
    writer.add_vision_image_std([0.26862954, 0.26130258, 0.27577711] if clip else [0.5] * 3)
    pair.more(writer, config)
    tensors = vision_tensors(pair, model, form)
    for name, value in (change(tensors) if change else tensors).items():
        writer.add_tensor(name, value)
    write(writer)


def swapped(tensors: dict[str, Any]) -> dict[str, Any]:
    """As files of older converters."""
    other = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    return {re.sub("ffn_(up|down)", lambda m: other[m[0]], name): value for name, value in tensors.items()}


@pytest.fixture(scope="module", params=PAIRS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Pair]:
    folder = tmp_path_factory.mktemp(request.param)
    family, pair = make_family(ALL_CASES[request.param], folder), PAIRS[request.param]
    files = folder / "files"
    files.mkdir()
    save_text(files / "model.gguf", pair, family.model)
    save_projector(files / "mmproj-model-f32.gguf", pair, family.model)
    found = find_files(ModelOptions(str(files / "model.gguf")))
    assert found.projector == files / "mmproj-model-f32.gguf"
    ours = create_processor(open_folder(found, family.lines._tokenizer))
    return replace(family, folder=files / "model.gguf", ours=ours), pair


@pytest.mark.parametrize("prompt", ["none", "one", "several, mixed sizes, text between"])
def test_logits_equal_transformers(both: tuple[Family, Pair], prompt: str) -> None:
    check_logits(both[0], ReferenceOps(), PROMPTS[prompt])


def test_native_kernels(both: tuple[Family, Pair]) -> None:
    check_logits(both[0], CpuOps(2), PROMPTS["several, mixed sizes, text between"])


def test_a_folder_is_prepared_alike(both: tuple[Family, Pair]) -> None:
    """The settings for images are the published ones, given by the file or known."""
    family, _ = both
    theirs, ours = family.image_processor.to_dict(), family.ours._processor.to_dict()  # type: ignore[attr-defined]
    for name in ("image_mean", "image_std"):  # files have 32 bits
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-7)
    names = ("size", "resample", "patch_size", "merge_size", "max_image_size", "rescale_factor")
    assert {n: ours.get(n) for n in names} == {n: theirs.get(n) for n in names}


def test_older_and_smaller_files(both: tuple[Family, Pair], tmp_path: Path) -> None:
    family, pair = both
    (tmp_path / "model.gguf").symlink_to(family.folder)
    save_projector(tmp_path / "mmproj.gguf", pair, family.model, np.float16, swapped)
    options = ModelOptions(str(tmp_path / "model.gguf"))
    assert read_config(find_files(options), options) == read_config(find_files(ModelOptions(str(family.folder))), options)
    open_worker(tmp_path / "model.gguf", ReferenceOps())


def test_which_file_is_taken(both: tuple[Family, Pair], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    family, pair = both
    text = tmp_path / "model.gguf"
    text.symlink_to(family.folder)
    assert beside(text) is None
    (tmp_path / "mmproj-BF16.gguf").write_bytes(b"GGUF")
    assert beside(text) is None and "text is served" in caplog.text
    for name in ("mmproj-Q8_0.gguf", "mmproj-f32.gguf"):
        (tmp_path / name).symlink_to(family.folder.with_name("mmproj-model-f32.gguf"))
    assert beside(text) == tmp_path / "mmproj-f32.gguf"
    assert find_files(ModelOptions(str(text), mmproj="off")).projector is None
    chosen = find_files(ModelOptions(str(text), mmproj=str(tmp_path / "mmproj-Q8_0.gguf")))
    assert chosen.projector == tmp_path / "mmproj-Q8_0.gguf"
    with pytest.raises(ModelError, match="belongs to a .gguf file"):
        find_files(ModelOptions(str(family.folder.parents[1]), mmproj=str(text)))


def test_what_does_not_fit_is_refused(both: tuple[Family, Pair], tmp_path: Path) -> None:
    family, pair = both

    def refused(match: str, change: Any = None, kind: str = pair.kind, text: Path = family.folder) -> None:
        path = tmp_path / "p.gguf"
        save_projector(path, replace(pair, kind=kind), family.model, change=change)
        options = ModelOptions(str(text), mmproj=str(path))
        with pytest.raises(ModelError, match=match):
            open_worker(text, ReferenceOps(), mmproj=str(path))
        with pytest.raises(ModelError, match=match):
            open_folder(find_files(options), SimpleNamespace())  # type: ignore[arg-type]
            open_worker(text, ReferenceOps(), mmproj=str(path))

    refused("are not supported; known", kind="llama4")
    refused("v.blk.0.ls3.weight", lambda tensors: tensors | {"v.blk.0.ls3.weight": np.zeros(3, np.float32)})
    last = (
        "mm.input_projection.weight"
        if pair.kind.startswith("gemma")
        else "mm.model.fc.weight"
        if pair.kind == "idefics3"
        else "mm.model.mlp.3.weight"
        if pair.kind == "internvl"
        else "mm.2.weight"
    )
    refused("another model", lambda tensors: tensors | {last: np.zeros((96, 96), np.float32)})
    refused("lacks the matrix", lambda tensors: {k: v for k, v in tensors.items() if k != last})
    name = "v.blk.1.ln1.weight"
    refused("shape", lambda tensors: tensors | {name: tensors[name][1:]})
