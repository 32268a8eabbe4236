"""Rotary position embedding: cos and sin by position, for the plain kind and its long-context variants.

Sources: RoPE arXiv 2104.09864; "linear" is position interpolation, arXiv 2306.15595; "llama3" as in Llama 3.1's config; "yarn"
arXiv 2309.00071; "longrope" arXiv 2402.13753. Angles are computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.ops import Array, Ops
from sglang.srt.model.layers.buffers import StepBuffers
from sglang.srt.model.model_config import ModelConfig, RopeConfig

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
TABLE_ROWS = 512
"""positions of a table computed at a time"""


@dataclass(frozen=True)
class Rope:
    """Tables on the device."""

    cos: Array  # [num_positions, rotary_dim / 2]
    sin: Array  # [num_positions, rotary_dim / 2]
    q_growth: Array | None = None  # [num_positions]: what q is multiplied by besides

    def of_step(self, step: StepBuffers) -> tuple[Rope, Array]:
        """The tables that a step's rows turn by, and the row of them for each row of the step."""
        return self, step.positions


def create_rope(ops: Ops, config: ModelConfig, rope: RopeConfig, num_positions: int) -> Rope:
    """The tables of `rope`, with the growth of q that the model has."""
    cos, sin = rope_tables(rope, num_positions)
    growth = None if config.query_growth is None else ops.array(query_growth(*config.query_growth, num_positions))
    return Rope(ops.array(cos), ops.array(sin), growth)


def no_rope(ops: Ops, num_positions: int) -> Rope:
    """Tables of one pair that turn nothing."""
    return Rope(ops.array(np.ones((num_positions, 1), np.float32)), ops.array(np.zeros((num_positions, 1), np.float32)))


def query_growth(beta: float, length: int, num_positions: int) -> Float32:
    """1 + beta ln(1 + floor(position / length)): attention stays sharp far beyond the length trained on (Llama 4)."""
    return (1 + beta * np.log1p(np.arange(num_positions) // length)).astype(np.float32)


def rope_tables(config: RopeConfig, num_positions: int) -> tuple[Float32, Float32]:
    """(cos, sin), each [num_positions, rotary_dim / 2]."""
    frequencies, factor = inverse_frequencies(config, num_positions), attention_factor(config)
    cos, sin = (np.empty((num_positions, len(frequencies)), np.float32) for _ in range(2))
    for start in range(0, num_positions, TABLE_ROWS):  # float64 values of a piece stay in the cache
        angles = np.arange(start, min(start + TABLE_ROWS, num_positions))[:, None] * frequencies
        for table, function in ((cos, np.cos), (sin, np.sin)):
            np.multiply(function(angles), factor, out=table[start : start + TABLE_ROWS], casting="same_kind")
    return cos, sin


def table_bytes(config: ModelConfig) -> int:
    """Peak bytes of making the tables for a model's context: what is computed beside what the kernels get."""
    ropes = [config.rope] + ([config.local_rope] if config.local_rope is not None else [])
    return sum(config.context_len * (rope.rotary_dim // 2) * (2 * 2 * 4) for rope in ropes)


def inverse_frequencies(config: RopeConfig, num_positions: int) -> Float64:
    """Radians a position turns each pair, [rotary_dim / 2]. longrope: K cannot be turned anew when a text grows beyond the original
    context, so which factors hold is decided by how far positions reach."""
    base = config.theta ** (-np.arange(0, config.rotary_dim, 2) / config.rotary_dim)
    is_long = config.long_divisors and num_positions > config.original_context_len
    divisors = config.long_divisors if is_long else config.freq_divisors
    if divisors:
        base = base / np.asarray(divisors, np.float64)
    if config.kind == "linear":
        return np.asarray(base / config.factor)
    if config.kind == "llama3":
        return _llama3(config, base)
    if config.kind == "yarn":
        return _yarn(config, base)
    return np.asarray(base)


def _llama3(config: RopeConfig, base: Float64) -> Float64:
    """Long wavelengths are interpolated, short ones kept, those between blended."""
    turns = config.original_context_len * base / (2 * math.pi)  # full turns over the original context
    keep = np.clip((turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor), 0, 1)
    return np.asarray(base * (keep + (1 - keep) / config.factor))


def _yarn(config: RopeConfig, base: Float64) -> Float64:
    """A ramp over the pairs, between the two that turn beta_fast and beta_slow times in the original context."""

    def pair_turning(turns: float) -> float:
        length = config.original_context_len / (turns * 2 * math.pi)
        return config.rotary_dim * math.log(length) / (2 * math.log(config.theta))

    low, high = pair_turning(config.beta_fast), pair_turning(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    width = high - low if high != low else 0.001
    interpolate = np.clip((np.arange(len(base)) - low) / width, 0, 1)
    return np.asarray(base * ((1 - interpolate) + interpolate / config.factor))


def attention_factor(config: RopeConfig) -> float:
    """The factor of cos and sin in yarn and longrope (attention scores get its square); 1 for the other kinds."""
    if config.kind not in ("yarn", "longrope"):
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.kind == "longrope":
        long = config.factor > 1 and config.original_context_len > 1
        return math.sqrt(1 + math.log(config.factor) / math.log(config.original_context_len)) if long else 1.0

    def scale(m: float) -> float:
        return 0.1 * m * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0

    if config.mscale and config.mscale_all_dim:
        return scale(config.mscale) / scale(config.mscale_all_dim)
    return scale(1.0)
