"""What a family of vision-language models is, and how the fields of its config are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang.srt.checkpoint.files import shown
from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.weights.config_fields import Fields

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu"]
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
GATED = {name: found for name, found in ACTIVATIONS.items() if found != "quick_gelu"}
"""what gated layers take"""
MAX_PIXELS = 1 << 16
"""a side of an image, a tile or a patch"""
MAX_TILES = 64
MAX_TAKEN = 16
"""layers whose rows stand side by side"""
MAX_MERGE = 16
"""patches a side that become one row"""

ReadVision = Callable[["VisionFields"], VisionConfig]


@dataclass(frozen=True)
class VisionFamily:
    """`class_name`: as config.json says it. `text_class`: the text family that its decoder belongs to; empty: it says so itself, by its
    model_type. `is_tied`: whether the head is the embedding where config.json does not say; None: it never is, whatever that
    says; "without head": where a checkpoint has no head and nothing in the config forbids it (transformers' classes)."""

    class_name: str
    text_class: str
    read: ReadVision
    interleaved_axes: bool = False
    sections: tuple[int, ...] = ()
    """of its rotating pairs, where config.json does not say"""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """fields of the decoder that its class has so, whatever config.json says"""
    turned_banks: bool = False
    """its files may have all experts of a layer in one tensor, [num_experts, columns, rows]"""
    is_tied: bool | None | Literal["without head"] = False
    text_type: str = "llama"
    """model_type of a decoder that does not say it"""
    text_classes: Mapping[str, str] = field(default_factory=dict)
    """model_type of a decoder -> its text family, where that is not `text_class`"""
    text_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """model_type of a decoder -> what transformers assumes for fields that published configs leave out"""


@dataclass(frozen=True)
class VisionFields:
    """`top`: the whole config; `vision`: its vision_config; `text`: its decoder's fields."""

    top: Fields
    vision: Fields
    text: Mapping[str, Any]

    def activation(self, name: str, default: str) -> Activation:
        return self.vision.choice(name, ACTIVATIONS, default)

    def pixels(self, name: str, default: int) -> int:
        """A size that may be written as a number, a pair or an object; sides must be equal."""
        value = self.vision.get(name, default)
        if isinstance(value, dict):
            value = list(value.values())
        sides = value if isinstance(value, (list, tuple)) else [value]
        if not sides or any(type(side) is not int or not 0 < side <= MAX_PIXELS or side != sides[0] for side in sides):
            raise self.vision.bad(name, f"must be one size up to {MAX_PIXELS}, got {shown(value)}")
        return int(sides[0])


def decoder_width(fields: VisionFields) -> int:
    value = fields.text.get("hidden_size")
    if type(value) is not int or value <= 0:
        raise fields.top.bad("hidden_size", f"must be a positive integer, got {shown(value)}")
    return value
