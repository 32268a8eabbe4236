"""The limits that a model's images set on the size of a step and on the number of running requests."""

from __future__ import annotations

import logging
from dataclasses import replace

from sglang.srt.config import MemoryOptions
from sglang.srt.errors import CapacityError, ConfigError
from sglang.srt.model.capacity import resolve_batch, shared_memory
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.layers.cross import cross_bytes_per_request
from sglang.srt.model.model_config import ModelConfig

logger = logging.getLogger("sglang")


def max_image_len(config: ModelConfig) -> int:
    """Tokens of an image that must be computed in one step; 0: it may be cut anywhere."""
    return config.vision.out_rows if config.vision is not None and config.vision.bidirectional_images else 0


def fit_images(memory: MemoryOptions, config: ModelConfig, ops: Ops, num_ranks: int = 1) -> MemoryOptions:
    """The options with steps that hold an image where one must not be cut, and, where layers attend to images, with no more
    requests than a quarter of the memory has room for the images of. Raises CapacityError if that is none, ConfigError for
    such a model on several ranks."""
    if config.cross_layers and num_ranks > 1:
        raise ConfigError("models with cross-attention to images are not split over several ranks: leave out --tp-size")
    if 0 < memory.chunked_prefill_size < max_image_len(config):
        logger.info(
            "Steps hold %d prompt tokens, not %d: this model computes an image in one",
            max_image_len(config),
            memory.chunked_prefill_size,
        )
        memory = replace(memory, chunked_prefill_size=max_image_len(config))
    per_request = cross_bytes_per_request(ops, config)
    if not per_request:
        return memory
    room, (running, _) = (
        shared_memory(memory).available // 4 // per_request,
        resolve_batch(memory, config.context_len),
    )
    if room < 1:
        raise CapacityError(
            f"memory does not suffice for the images of one request: they take {per_request / (1 << 30):.2f} GiB, of which "
            "four times as much must be available"
        )
    if room < running:
        logger.info("At most %d requests run at once, not %d: there is no room for the images of more", room, running)
    return replace(memory, max_running_requests=min(running, room))
