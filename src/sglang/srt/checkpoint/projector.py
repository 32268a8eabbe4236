"""Encoders of images in .gguf files: the `mmproj` file that llama.cpp has beside a decoder's. What the two say, in the words of a
folder's config.json and preprocessor_config.json, which `weights/vision/` and the image processors read and check.

    clip.projector_type        family                      text
    gemma3                     Gemma 3                     gemma3
    gemma4v                    Gemma 4                     gemma4
    idefics3                   SmolVLM, Idefics3           llama
    internvl                   InternVL 3                  qwen2, qwen3, qwen3moe
    pixtral                    Pixtral, Mistral 3          llama, mistral3
    qwen2vl_merger             Qwen2-VL                    qwen2vl
    qwen2.5vl_merger           Qwen2.5-VL                  qwen2vl
    qwen3vl_merger             Qwen3-VL                    qwen3vl
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.checkpoint.files import shown
from sglang.srt.checkpoint.gguf_reader import GGUFFile, open_gguf
from sglang.srt.errors import ModelError

logger = logging.getLogger(__name__)

OFF = "off"
BEST = ("f16", "bf16", "f32", "q8_0")
"""of several beside a model, the first by its name"""
GEMMA4_TOKENS = 280
"""of an image, as published"""
TEMPORAL = 2
"""frames of a patch in Qwen's encoders"""


@dataclass(frozen=True)
class SeeingModel:
    """`config`: as config.json; `preprocessor`: settings of transformers' image processor."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]


class Projector:
    """An open mmproj file beside its decoder's. Raises ModelError."""

    def __init__(self, text: GGUFFile, file: GGUFFile) -> None:
        self.text, self.file = text, file
        kind = file.metadata.get("clip.projector_type", file.metadata.get("clip.vision.projector_type"))
        if kind is None and file.metadata.get("clip.has_qwen2vl_merger") is True:  # of older files
            kind = "qwen2vl_merger"
        if not isinstance(kind, str) or kind not in KINDS:
            raise ModelError(f"{file.path}: images of the kind {shown(kind)} are not supported; known: {', '.join(KINDS)}")
        self.kind, arch = kind, text.metadata.get("general.architecture")
        wanted, self._read = KINDS[kind]
        if not isinstance(arch, str) or arch not in wanted:
            raise ModelError(
                f"{file.path} is the encoder of a model of type {' or '.join(wanted)}, and {text.path} is of type {shown(arch)}"
            )
        self.arch = arch
        self.width, self.out = self.size("embedding_length"), self._rows(OUT[kind])
        hidden = text.metadata.get(f"{arch}.embedding_length")
        if self.out != hidden:
            raise ModelError(
                f"{file.path} makes rows of {self.out}, and {text.path} has rows of {shown(hidden)}: of another model"
            )

    def read(self) -> SeeingModel:
        return self._read(self)

    def bad(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self.file.path}: {key} {what}")

    def size(self, key: str, default: int | None = None) -> int:
        value = self.file.metadata.get(f"clip.vision.{key}", default)
        if type(value) is not int or not 0 < value < 1 << 28:
            raise self.bad(
                f"clip.vision.{key}", "is missing" if value is None else f"must be a positive integer, got {shown(value)}"
            )
        return value

    def array(self, key: str) -> list[Any] | None:
        value = self.file.metadata.get(f"clip.vision.{key}")
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.ndim != 1 or len(value) > 1 << 12:
            raise self.bad(f"clip.vision.{key}", f"must be a list of numbers, got {shown(value)}")
        found: list[Any] = value.tolist()
        return found

    def token(self, *names: str) -> int:
        """The id of the first of these tokens that the model has."""
        tokens = self.text.metadata.get("tokenizer.ggml.tokens")
        for name in names:
            if isinstance(tokens, list) and name in tokens:
                return tokens.index(name)
        raise ModelError(f"{self.text.path}: its tokenizer has no token {names[0]!r}, which images need")

    def shape(self, name: str) -> tuple[int, ...]:
        tensor = self.file.tensors.get(name)
        if tensor is None or len(tensor.shape) < 2:
            raise ModelError(f"{self.file.path} lacks the matrix {name!r}: it is not a whole encoder")
        return tensor.shape

    def _rows(self, out: tuple[str, int]) -> int:
        return self.shape(out[0])[out[1]]

    @property
    def is_swapped(self) -> bool:
        """Older files call the first matrix of a feed-forward layer ffn_down and the second ffn_up."""
        return self.shape("v.blk.0.ffn_up.weight")[1] != self.width

    @property
    def inner(self) -> int:
        return self.shape("v.blk.0.ffn_down.weight" if self.is_swapped else "v.blk.0.ffn_up.weight")[0]

    @property
    def normal(self) -> dict[str, Any]:
        """How pixels are normalized."""
        return {name: value for name in ("image_mean", "image_std") if (value := _rounded(self.array(name))) is not None}


OUT = {
    "gemma3": ("mm.input_projection.weight", 1),
    "gemma4v": ("mm.input_projection.weight", 0),
    "idefics3": ("mm.model.fc.weight", 0),
    "internvl": ("mm.model.mlp.3.weight", 0),
    "pixtral": ("mm.2.weight", 0),
    "qwen2vl_merger": ("mm.2.weight", 0),
    "qwen2.5vl_merger": ("mm.2.weight", 0),
    "qwen3vl_merger": ("mm.2.weight", 0),
}
"""kind -> the last matrix, and which of its sizes is that of the rows it makes"""


def _rounded(values: list[Any] | None) -> list[float] | None:
    """Numbers as they were written before they became float32."""
    return None if values is None else [float(f"{value:.8g}") for value in values]


def _siglip(p: Projector) -> dict[str, Any]:
    eps = p.file.metadata.get("clip.vision.attention.layer_norm_epsilon")
    return {
        "num_hidden_layers": p.size("block_count"),
        "hidden_size": p.width,
        "num_attention_heads": p.size("attention.head_count"),
        "intermediate_size": p.inner,
        "patch_size": p.size("patch_size"),
        "image_size": p.size("image_size"),
        "layer_norm_eps": _rounded([eps])[0] if isinstance(eps, float) else 1e-6,  # type: ignore[index]
    }


def _gemma3(p: Projector) -> SeeingModel:
    """Files have no row for the id that stands for an image's rows: one that texts do not use takes its place."""
    side, vision = p.size("image_size"), _siglip(p)
    out_side = side // p.size("patch_size") // p.size("projector.scale_factor", 4)
    config = {
        **_frame(p, "Gemma3ForConditionalGeneration", "gemma3", vision),
        "image_token_id": p.token("<image_soft_token>", "[multimodal]", "<unused0>"),
        "boi_token_index": p.token("<start_of_image>"),
        "eoi_token_index": p.token("<end_of_image>"),
        "mm_tokens_per_image": out_side * out_side,
    }
    return SeeingModel(config, {"size": {"height": side, "width": side}, "resample": 2, **p.normal})


def _gemma4(p: Projector) -> SeeingModel:
    """Files do not say which decoders see all of an image at once: of those that are published, the ones without rows of tokens for each
    layer."""
    pool, patch, tensors = p.size("projector.scale_factor", 3), p.size("patch_size"), p.file.tensors
    vision = {
        "num_hidden_layers": p.size("block_count"),
        "hidden_size": p.width,
        "num_attention_heads": p.size("attention.head_count"),
        "num_key_value_heads": p.size("attention.head_count"),
        "head_dim": p.width // p.size("attention.head_count"),
        "intermediate_size": p.inner,
        "patch_size": patch,
        "pooling_kernel_size": pool,
        "position_embedding_size": p.shape("v.position_embd.weight")[1],
        "use_clipped_linears": "v.blk.0.attn_q.input_max" in tensors,
        "standardize": "v.std_bias" in tensors,
    }
    frame = _frame(p, "Gemma4ForConditionalGeneration", "gemma4", vision)
    if not p.text.metadata.get("gemma4.embedding_length_per_layer_input"):
        frame["text_config"]["use_bidirectional_attention"] = "vision"
    ids = {"image_token_id": p.token("<|image|>"), "boi_token_id": p.token("<|image>"), "eoi_token_id": p.token("<image|>")}
    side = patch * pool
    tokens = p.size("image_max_pixels", GEMMA4_TOKENS * side**2) // side**2
    budget = 70 << min(max((tokens // 70).bit_length() - 1, 0), 4)  # 70, 140 ... 1120
    return SeeingModel(
        {**frame, **ids}, {"patch_size": patch, "pooling_kernel_size": pool, "max_soft_tokens": budget, "do_normalize": False}
    )


def _idefics3(p: Projector) -> SeeingModel:
    side = p.size("image_size")
    config = {
        **_frame(p, "Idefics3ForConditionalGeneration", "idefics3", _siglip(p)),
        "image_token_id": p.token("<image>"),
        "scale_factor": p.size("projector.scale_factor", 2),
    }
    longest = p.size("preproc_image_size", 4 * side)
    return SeeingModel(config, {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": side}, **p.normal})


def _internvl(p: Projector) -> SeeingModel:
    side, tensors = p.size("image_size"), p.file.tensors
    vision = {
        **_siglip(p),
        "attention_bias": "v.blk.0.attn_q.bias" in tensors,
        "use_qk_norm": "v.blk.0.attn_q_norm.weight" in tensors,
        "norm_type": "layer_norm" if "v.blk.0.ln1.bias" in tensors else "rms_norm",
    }
    config = {
        **_frame(p, "InternVLForConditionalGeneration", "internvl", vision),
        "image_token_id": p.token("<IMG_CONTEXT>"),
        "downsample_ratio": 1 / p.size("projector.scale_factor", 2),
    }
    tiles = {"min_patches": p.size("preproc_min_tiles", 1), "max_patches": p.size("preproc_max_tiles", 12)}
    return SeeingModel(config, {"size": {"height": side, "width": side}, **tiles, **p.normal})


def _pixtral(p: Projector) -> SeeingModel:
    """Mistral 3, where squares of patches are merged."""
    side, patch, heads, meta = p.size("image_size"), p.size("patch_size"), p.size("attention.head_count"), p.file.metadata
    merged = "mm.patch_merger.weight" in p.file.tensors
    vision = {
        "model_type": "pixtral",
        "num_hidden_layers": p.size("block_count"),
        "hidden_size": p.width,
        "num_attention_heads": heads,
        "head_dim": p.width // heads,
        "intermediate_size": p.inner,
        "patch_size": patch,
        "image_size": side,
        "hidden_act": "silu" if meta.get("clip.use_silu") is True else "gelu",
    }
    frame = _frame(p, f"{'Mistral3' if merged else 'Llava'}ForConditionalGeneration", "mistral3" if merged else "llava", vision)
    eps = p.text.metadata.get(f"{p.arch}.attention.layer_norm_rms_epsilon")
    if isinstance(eps, float):
        frame["text_config"]["rms_norm_eps"] = _rounded([eps])[0]  # type: ignore[index]
    config = {
        **frame,
        "image_token_id": p.token("[IMG]"),
        "spatial_merge_size": p.size("spatial_merge_size", 2),
        "multimodal_projector_bias": "mm.1.bias" in p.file.tensors,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    return SeeingModel(config, {"size": {"longest_edge": side}, "patch_size": {"height": patch, "width": patch}, **p.normal})


def _qwen(p: Projector, class_name: str, model_type: str, vision: dict[str, Any], pixels: tuple[int, int]) -> SeeingModel:
    merge = p.size("spatial_merge_size", 2)
    shared = {
        "depth": p.size("block_count"),
        "num_heads": p.size("attention.head_count"),
        "patch_size": p.size("patch_size"),
        "temporal_patch_size": TEMPORAL,
        "spatial_merge_size": merge,
    }
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    config = {
        **_frame(p, class_name, model_type, {**shared, **vision}),
        **{f"{ours}_token_id": p.token(f"<|{theirs}|>") for ours, theirs in names.items()},
    }
    least, most = p.size("image_min_pixels", pixels[0]), p.size("image_max_pixels", pixels[1])
    settings = {"patch_size": shared["patch_size"], "temporal_patch_size": TEMPORAL, "merge_size": merge}
    return SeeingModel(config, {**settings, "size": {"shortest_edge": least, "longest_edge": most}, **p.normal})


def _qwen2_vl(p: Projector) -> SeeingModel:
    vision = {"embed_dim": p.width, "hidden_size": p.out, "mlp_ratio": (p.inner + 0.5) / p.width}
    return _qwen(p, "Qwen2VLForConditionalGeneration", "qwen2_vl", vision, (3136, 12845056))


def _qwen2_5_vl(p: Projector) -> SeeingModel:
    """Every so many layers see everything, or those that are listed."""
    depth, whole = p.size("block_count"), p.array("wa_layer_indexes")
    every = p.size("n_wa_pattern", 8)
    vision = {
        "hidden_size": p.width,
        "out_hidden_size": p.out,
        "intermediate_size": p.inner,
        "window_size": p.size("window_size", 112),
        "fullatt_block_indexes": whole if whole is not None else list(range(every - 1, depth, every)),
        "tokens_per_second": 2,
    }
    return _qwen(p, "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", vision, (3136, 12845056))


def _qwen3_vl(p: Projector) -> SeeingModel:
    deep = p.array("is_deepstack_layers") or []
    vision = {
        "hidden_size": p.width,
        "out_hidden_size": p.out,
        "intermediate_size": p.inner,
        "num_position_embeddings": p.shape("v.position_embd.weight")[0],
        "deepstack_visual_indexes": [i for i, is_deep in enumerate(deep) if is_deep],
    }
    return _qwen(p, "Qwen3VLForConditionalGeneration", "qwen3_vl", vision, (65536, 16777216))


def _frame(p: Projector, class_name: str, model_type: str, vision: dict[str, Any]) -> dict[str, Any]:
    """What every config has. The axes of positions are the decoder's to say."""
    text: dict[str, Any] = {"hidden_size": p.out}
    sections = p.text.metadata.get(f"{p.arch}.rope.dimension_sections")
    if isinstance(sections, np.ndarray) and len(sections) >= 3:
        text["rope_parameters"] = {"mrope_section": sections.tolist()[:3]}
    return {"architectures": [class_name], "model_type": model_type, "vision_config": vision, "text_config": text}


KINDS: Mapping[str, tuple[tuple[str, ...], Callable[[Projector], SeeingModel]]] = {
    "gemma3": (("gemma3",), _gemma3),
    "gemma4v": (("gemma4",), _gemma4),
    "idefics3": (("llama",), _idefics3),
    "internvl": (("qwen2", "qwen3", "qwen3moe"), _internvl),
    "pixtral": (("llama", "mistral3"), _pixtral),
    "qwen2vl_merger": (("qwen2vl",), _qwen2_vl),
    "qwen2.5vl_merger": (("qwen2vl",), _qwen2_5_vl),
    "qwen3vl_merger": (("qwen3vl",), _qwen3_vl),
}
"""clip.projector_type -> (general.architecture of its decoder, who reads it)"""


def open_projector(text: Path, projector: Path) -> Projector:
    return Projector(open_gguf(text), open_gguf(projector))


def beside(text: Path) -> Path | None:
    """The encoder that lies beside a decoder's file and belongs to it. None without one, and where images cannot be read."""
    found = sorted(path for path in text.parent.glob("*mmproj*.gguf") if path.is_file() and path != text)
    if not found:
        return None
    if any(importlib.util.find_spec(name) is None for name in ("PIL", "transformers")):
        logger.warning("%s is not read, since images need the extra [vision]; text is served", found[0].name)
        return None
    for path in sorted(found, key=_rank):
        try:
            open_projector(text, path).read()
        except ModelError as error:
            logger.warning("%s is not read (%s); text is served", path.name, error)
        else:
            return path
    return None


def _rank(path: Path) -> int:
    name = path.stem.lower()
    return next((i for i, kind in enumerate(BEST) if name.endswith(kind) and not name.endswith(f"b{kind}")), len(BEST))
