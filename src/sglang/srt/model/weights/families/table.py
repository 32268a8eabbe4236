"""The registry of families, by their names in config.json and GGUF files."""

from __future__ import annotations

from sglang.srt.model.weights.families.family import Family
from sglang.srt.model.weights.families.gemma import GEMMA_FAMILIES
from sglang.srt.model.weights.families.gemma4 import GEMMA4_FAMILIES
from sglang.srt.model.weights.families.hybrid import RECURRENT_FAMILIES
from sglang.srt.model.weights.families.latents import LATENT_FAMILIES
from sglang.srt.model.weights.families.layernorm import LAYER_NORM_FAMILIES
from sglang.srt.model.weights.families.mixtures import EXPERT_FAMILIES
from sglang.srt.model.weights.families.rms import RMS_FAMILIES
from sglang.srt.model.weights.families.state_spaces import STATE_SPACE_FAMILIES

FAMILIES: tuple[Family, ...] = (
    *RMS_FAMILIES,
    *GEMMA_FAMILIES,
    *GEMMA4_FAMILIES,
    *LAYER_NORM_FAMILIES,
    *EXPERT_FAMILIES,
    *RECURRENT_FAMILIES,
    *STATE_SPACE_FAMILIES,
    *LATENT_FAMILIES,
)
