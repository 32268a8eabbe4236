"""Encoders of images as numbers, and the layers of decoders that see through layers of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CrossConfig:
    """A decoder some of whose layers attend to the rows of images instead of its own, and the encoder of such an image: tiles
    of one size, of which the encoder always sees `max_tiles` (Llama 3.2 Vision, arXiv 2407.21783, section 7)."""

    layers: tuple[int, ...]
    """of the decoder, ascending"""
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    """of the decoder's norms"""
    max_tiles: int
    num_shapes: int
    """ways to lay out the tiles; the encoder has tables for each"""
    num_global_layers: int
    taken_layers: tuple[int, ...]
    """of the encoder, whose output is shown to the decoder beside the last layer's"""


@dataclass(frozen=True)
class VisionConfig:
    """The encoder that turns patches of images into rows of the decoder's width. Each family reads the fields it has."""

    kind: str
    """key of models/vision/registry.py"""
    media_kinds: tuple[str, ...]
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    out_size: int
    """width of the rows it makes: the decoder's hidden_size"""
    image_token_id: int
    activation: Literal["silu", "gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    norm_eps: float = 1e-6
    num_channels: int = 3
    temporal_patch_size: int = 1
    merge_size: int = 1
    """so many patches a side become one row"""
    window_size: int = 0
    """pixels a side of an attention window; 0: every layer sees the whole image"""
    full_layers: tuple[int, ...] = ()
    """the layers without windows, where there are windows"""
    image_size: int = 0
    """pixels a side, for encoders of one size"""
    num_positions: int = 0
    """rows of the learnt position table"""
    deep_layers: tuple[int, ...] = ()
    """layers whose output also goes into the decoder's first layers (Qwen3-VL)"""
    out_rows: int = 0
    """rows an image becomes, where that is fixed (Gemma 3)"""
    bidirectional_images: bool = False
    """whether the decoder's rows of an image see all of it, not only what stands before them (Gemma 3)"""
    only_windows_see_ahead: bool = False
    """with `bidirectional_images`: they do so in the layers that have a window alone (Gemma 4)"""
    class_row: bool = False
    """a learnt row stands before those of a tile's patches (CLIP)"""
    taken_layers: tuple[int, ...] = ()
    """after so many layers rows are taken, and stand side by side; empty: after all"""
    drops_first: bool = False
    """a tile's first row is not shown to the decoder"""
    attention_bias: bool = True
    """biases on q, k and v (InternVL)"""
    qk_norm: bool = False
    """RMS over all heads of q and of k (InternVL)"""
    rms_norms: bool = False
    """in the layers, instead of layer norms (InternVL)"""
    final_norm: bool = False
    """a norm after the last layer (InternVL)"""
    rope_theta: float = 10000.0
    merger_size: int = 0
    """of the gated layer that makes a row of a square of patches (GLM-4V)"""
    bounded: bool = False
    """linear layers clip what they read and what they make (Gemma 4)"""
    standardized: bool = False
    """rows are shifted and scaled, channel by channel, before the last linear layer (Gemma 4)"""
    projector_bias: bool = True
    projector_eps: float = 1e-5
    tied_without_head: bool = False
    """the head is the embedding if the checkpoint brings none"""
    cross_attention: CrossConfig | None = None
    """the decoder sees images through layers of their own (Llama 3.2 Vision)"""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads
