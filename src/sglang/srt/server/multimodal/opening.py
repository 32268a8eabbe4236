"""Creates the media pipeline of a vision-language model: the only place that imports it, so that text models do without."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

from sglang.common.install import install_extras
from sglang.srt.checkpoint.resolve import find_files
from sglang.srt.config import RuntimeConfig
from sglang.srt.server.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sglang.srt.server.multimodal.intake import MediaIntake


logger = logging.getLogger(__name__)
PACKAGES = {"PIL": "Pillow", "transformers": "transformers"}
"""module -> the package that it comes from"""


def missing() -> str:
    """What is not installed of what images need, as part of a sentence."""
    return " and ".join(name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None)


def open_intake(config: RuntimeConfig, info: dict[str, Any], tokenizer: Tokenizer | None) -> MediaIntake | None:
    """None for a model of text, without a tokenizer, and where packages are missing that images need: then text alone is served,
    and a warning says so. `info` is forward_batch.ModelInfo as a dict. Raises ConfigError."""
    if not info.get("media_kinds") or tokenizer is None:
        return None
    if lacking := missing():
        command = install_extras("srt", "vision")
        logger.warning("images and videos need %s: text alone is served. To serve them, too: %s", lacking, command)
        return None
    from sglang.srt.server.multimodal.intake import create_intake

    return create_intake(find_files(config.model), tokenizer, config.media)
