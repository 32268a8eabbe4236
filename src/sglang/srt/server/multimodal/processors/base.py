"""What every processor has: its model's ids and settings, and the digest that names a picture.

The arithmetic on pixels is that of transformers' image processors (their Pillow classes, which need no torch), so that the
encoder sees what it was trained on. They are imported when a model that sees is served, and not before.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import ModelError, RequestError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import Detail
from sglang.srt.server.multimodal.spans import Int32, Picture, Span
from sglang.srt.server.tokenization.tokenizer import Tokenizer

LOW_DETAIL_PIXELS = 512 * 512
"""what "low" allows a picture at most, where the model can choose (source: the OpenAI API)"""


Frame = npt.NDArray[np.uint8]
"""RGB, [height, width, 3]"""


class Processor(Protocol):
    """One model's way with pictures. `process` runs on side threads, several at a time."""

    kinds: tuple[MediaKind, ...]
    placeholders: dict[MediaKind, int]
    """the id that stands for one item in a prompt"""
    image_token: str
    """what is written in a prompt for an image, placeholder and all"""

    def num_tokens(self, kind: MediaKind, shape: Shape, detail: Detail, alone: bool) -> int:
        """How many `Picture.tokens` a picture of that shape will have. Raises RequestError for one that cannot be taken."""
        ...

    def process(self, kind: MediaKind, frames: Sequence[Frame], detail: Detail, alone: bool) -> Picture:
        """`alone`: the prompt has no other picture. Raises RequestError for a picture that the model cannot take."""
        ...

    def positions(self, length: int, pictures: Sequence[tuple[Picture, list[Span]]]) -> tuple[Int32, int] | None:
        """spans.axis_positions for models with positions of several axes."""
        ...


class ModelFolder:
    """The files of a model that processors read."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.path = path
        self.tokenizer = tokenizer
        self.config = self.json("config.json")

    def json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path / name} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise ModelError(f"{self.path / name} should hold a JSON object")
        return value

    def number(self, name: str, default: int) -> int:
        value = self.config.get(name, default)
        if type(value) is not int or value < 0:
            raise ModelError(f"{self.path / 'config.json'}: {name} must be a number, and is {value!r}")
        return value

    def token_id(self, name: str) -> int:
        """The id of a special token by its name."""
        found = self.tokenizer.encode(name, add_special_tokens=False)
        if len(found) != 1:
            raise ModelError(f"{self.path}: the tokenizer has no token {name!r}, which the model's pictures need")
        return found[0]

    def image_processor(self, module: str, name: str) -> Any:
        """transformers' image processor of this model, with the model's own settings."""
        # It says at import that it has found no torch, which is as it should be.
        logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
        try:
            found = getattr(importlib.import_module(f"transformers.models.{module}"), name)
        except ImportError as error:
            raise ModelError(
                f"serving images needs transformers and Pillow ({error}): install sglang-anywhere[srt,vision]"
            ) from error
        try:
            return found.from_pretrained(self.path, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{self.path}: its preprocessor_config.json cannot be used: {error}") from error


def run_processor(processor: Any, images: Sequence[Any], **options: Any) -> dict[str, npt.NDArray[Any]]:
    """Calls transformers' processor; what it finds wrong with a picture is the request's fault."""
    try:
        options = {name: value for name, value in options.items() if value is not None}
        found = processor(
            images=list(images), return_tensors="np", input_data_format="channels_last", do_convert_rgb=False, **options
        )
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise RequestError(f"the model cannot take this image: {error}", "image_url") from error
    return {name: np.asarray(value) for name, value in found.items()}


def picture_hash(fingerprint: bytes, kind: MediaKind, frames: Sequence[Frame], detail: Detail) -> bytes:
    """A digest of everything that decides the encoder's rows: pixels, sizes, order, settings."""
    digest = hashlib.blake2b(fingerprint, digest_size=16)
    digest.update(f"{kind} {detail} {len(frames)}".encode())
    for frame in frames:
        digest.update(f"{frame.shape}|".encode())
        digest.update(np.ascontiguousarray(frame).data)
    return digest.digest()


def fingerprint_of(processor: Any) -> bytes:
    """A digest of a processor's class and settings."""
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return hashlib.blake2b(f"{type(processor).__name__} {settings}".encode(), digest_size=16).digest()
