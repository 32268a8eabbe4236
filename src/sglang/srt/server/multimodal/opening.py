"""Creates the media pipeline of a vision-language model: the only place that imports it, so that text models do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.common.install import install_extras
from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import RuntimeConfig
from sglang.srt.errors import ConfigError
from sglang.srt.server.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sglang.srt.server.multimodal.intake import MediaIntake


def open_intake(config: RuntimeConfig, info: dict[str, Any], tokenizer: Tokenizer | None) -> MediaIntake | None:
    """None for a model of text, or without a tokenizer. `info` is forward_batch.ModelInfo as a dict. Raises ConfigError."""
    if not info.get("media_kinds") or tokenizer is None:
        return None
    try:
        from sglang.srt.server.multimodal.intake import create_intake
    except ImportError as error:
        raise ConfigError(
            f"this model takes images, which needs Pillow and transformers ({error}): {install_extras('srt', 'vision')}"
        ) from error
    return create_intake(find_files(config.model), tokenizer, config.media)
