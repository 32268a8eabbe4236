"""The definition of a family, and readers that several families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.kernels.ops import Activator, Gate
from sglang.srt.model.model_config import PLAIN_LAYOUT, ModelConfig, TensorLayout
from sglang.srt.model.weights.config_fields import MAX_ID, Fields

Finish = Callable[[Fields, ModelConfig], ModelConfig]

MIN_SCALE = 1e-6
"""of attention scores, their caps and other multipliers; 1 / MIN_SCALE is the largest"""

GATES: dict[str, Gate] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
PLAIN_GATES: dict[str, Activator] = {**GATES, "quick_gelu": "quick_gelu", "relu": "relu", "relu2": "relu2"}


def unchanged(fields: Fields, config: ModelConfig) -> ModelConfig:
    """No changes: the family has the common form."""
    return config


@dataclass(frozen=True)
class GGUFForm:
    """The family in llama.cpp's files: `architecture` in their metadata, stems of a layer's tensors that mean something else
    than usual, and whether the rows of q and k are stored for interleaved rotation."""

    architecture: str
    stems: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    interleaved: bool = False


@dataclass(frozen=True)
class Family:
    """`class_name` and `model_type` are how config.json says it, `bare_name` that it is without a head: such a model embeds."""

    architecture: str
    """ModelConfig.architecture"""
    class_name: str
    model_type: str
    defaults: Mapping[str, Any]
    """what transformers' config class assumes for absent fields"""
    finish: Finish = unchanged
    """reads what only this family has"""
    bare_name: str = ""
    whole_name: str = field(default="", kw_only=True)
    """its class with encoders of images or sound, of which only the decoder is read"""
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda raw: {}, kw_only=True)
    """fields that others of its config.json say"""
    shape: Mapping[str, Any] = field(default_factory=dict)
    """fields of ModelConfig that are the same for all models of the family"""
    layout: TensorLayout = PLAIN_LAYOUT
    spelled: Mapping[str, str] = field(default_factory=dict)
    """usual name of a field -> the family's"""
    is_plain: bool = False
    """its feed-forward layer has no gate"""
    mlp_width: int = 0
    """intermediate_size is so many times hidden_size where config.json does not say; 0: it must"""
    width_per_layer: bool = False
    """intermediate_size may be a list"""
    gguf: GGUFForm | None = None

    @property
    def classifier_name(self) -> str:
        """Its class with a head for labels."""
        return self.class_name.replace("ForCausalLM", "ForSequenceClassification") if "ForCausalLM" in self.class_name else ""


def with_window(fields: Fields, config: ModelConfig, is_windowed: Callable[[int], bool]) -> ModelConfig:
    """Sets the sliding window, on the layers of `layer_types` if given, else on those that `is_windowed` says."""
    if fields.get("sliding_window") is None:
        return without_window(fields, config)
    window = fields.count("sliding_window", most=MAX_ID)
    told = _windowed_layers(fields, config.num_layers)
    layers = told if told is not None else tuple(is_windowed(i) for i in range(config.num_layers))
    return replace(config, sliding_window=window, windowed_layers=layers) if any(layers) else config


def without_window(fields: Fields, config: ModelConfig) -> ModelConfig:
    """Checks that all layers attend without a window. Raises ConfigError if `layer_types` says otherwise."""
    fields.read.add("sliding_window")
    if any(_windowed_layers(fields, config.num_layers) or ()):
        raise fields.bad("layer_types", "asks for sliding_attention, but the model has no sliding window")
    return config


def _windowed_layers(fields: Fields, num_layers: int) -> tuple[bool, ...] | None:
    """Which layers have a window by `layer_types`; None if that is not there."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) < num_layers:
        raise fields.bad("layer_types", f"must name {num_layers} layers, got {shown(kinds)}")
    for kind in kinds[:num_layers]:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.bad("layer_types", f"asks for {shown(kind)}; known: full_attention and sliding_attention")
    return tuple(kind == "sliding_attention" for kind in kinds[:num_layers])


def every_layer_windowed(fields: Fields, config: ModelConfig) -> ModelConfig:
    return with_window(fields, config, lambda layer: True)


def multiplier(fields: Fields, name: str, default: float) -> float:
    return fields.number(name, default, above=MIN_SCALE, most=1 / MIN_SCALE)


def all_biases(fields: Fields, config: ModelConfig, attention: str = "attention_bias", mlp: str = "mlp_bias") -> ModelConfig:
    """One flag for q, k, v and o, one for the feed-forward layer."""
    bias = fields.flag(attention)
    return replace(config, attention_bias=bias, output_bias=bias, mlp_bias=fields.flag(mlp))
