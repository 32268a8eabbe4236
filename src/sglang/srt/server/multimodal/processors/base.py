"""The base class of processors: the model's ids and settings, and the digest that identifies an image.

The arithmetic on pixels is that of transformers' image processors (their Pillow classes, which need no torch), so that the
encoder sees what it was trained on. They are imported only when a vision-language model is served.
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

from sglang.common.install import install_extras
from sglang.srt.checkpoint.files import read_object, shown
from sglang.srt.checkpoint.projector import open_projector
from sglang.srt.config import ModelFiles
from sglang.srt.errors import ModelError, RequestError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip, Frame
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span
from sglang.srt.server.tokenization.tokenizer import Tokenizer

LOW_DETAIL_PIXELS = 512 * 512
"""what "low" allows an image at most, where the model can choose (source: the OpenAI API)"""
MAX_SIDE = 4096
"""pixels that an image is made to have a side"""
MAX_NUMBER = 1 << 28


class Processor(Protocol):
    """One model's way with images. `process` runs on side threads, several at a time."""

    kinds: tuple[MediaKind, ...]
    placeholders: dict[MediaKind, int]
    """the id that stands for one item in a prompt"""
    image_token: str
    """what is written in a prompt for an image, placeholder and all"""

    row_ids: frozenset[int]
    """ids that mean rows of an image in the model and are no placeholders: they may not come in a prompt"""
    default_tokens: int
    """the most tokens of an image where neither flag nor request sets a limit"""

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        """The number of `ProcessedMedia.tokens` of an image of that shape (of a video at least, where times are written before
        its frames). Raises RequestError for one that cannot be taken."""
        ...

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        """(width, height) of what the encoder sees of an image of that shape, margins included."""
        ...

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        """Raises RequestError for an image that the model cannot take."""
        ...

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
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
            return read_object(self.path / name)
        except FileNotFoundError as error:
            raise ModelError(f"cannot read {self.path / name}: {error.strerror}") from error

    def number(self, name: str, default: int) -> int:
        return self._whole(self.config, name, default, 0)

    def vision(self, name: str, default: int) -> int:
        """A positive number of vision_config, which may be written once for each side."""
        vision = self.config.get("vision_config")
        if not isinstance(vision, dict):
            raise ModelError(f"{self.path / 'config.json'}: vision_config must be an object, got {shown(vision)}")
        sides = vision.get(name)
        if isinstance(sides, list) and sides and all(side == sides[0] for side in sides):
            vision = {name: sides[0]}
        return self._whole(vision, name, default, 1)

    def _whole(self, config: dict[str, Any], name: str, default: int, least: int) -> int:
        value = config.get(name, default)
        if type(value) is not int or not least <= value < MAX_NUMBER:
            raise ModelError(f"{self.path / 'config.json'}: {name} must be a number from {least} on, got {shown(value)}")
        return value

    def token_id(self, name: str) -> int:
        """The id of a special token by its name."""
        found = self.tokenizer.encode(name, add_special_tokens=False)
        if len(found) != 1:
            raise ModelError(f"{self.path}: the tokenizer has no token {name!r}, which the model's images need")
        return found[0]

    def processor_type(self, default: str) -> str:
        """The name of transformers' image processor, without what it says of its speed."""
        path = self.path / "preprocessor_config.json"
        name = self.json(path.name).get("image_processor_type") if path.is_file() else None
        return default if name is None else str(name).removesuffix("Fast").removesuffix("Pil")

    def image_processor(self, module: str, name: str, in_pixels: bool = False) -> Any:
        """transformers' image processor of this model, with the model's own settings. `in_pixels`: sizes are numbers of pixels
        there, not lengths of sides."""
        # It says at import that it has found no torch, which is as it should be.
        logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
        try:
            found = getattr(importlib.import_module(f"transformers.models.{module}"), name)
        except ImportError as error:
            raise ModelError(
                f"serving images needs transformers and Pillow ({error}): {install_extras('srt', 'vision')}"
            ) from error
        self.check_settings(MAX_NUMBER if in_pixels else MAX_SIDE)
        try:
            return self.create(found)
        except Exception as error:  # noqa: BLE001  what transformers makes of settings of a wrong type
            raise ModelError(f"{self.path}: its settings for images cannot be used: {first_line(error)}") from error

    def check_settings(self, most: int) -> None:
        path = self.path / "preprocessor_config.json"
        if path.exists():
            check_settings(path, self.json(path.name), most)

    def create(self, found: Any) -> Any:
        """An image processor of the class `found`."""
        return found.from_pretrained(self.path, local_files_only=True)


class ProjectorFolder(ModelFolder):
    """The same of a .gguf file and the encoder beside it."""

    def __init__(self, text: Path, projector: Path, tokenizer: Tokenizer) -> None:
        self.path, self.tokenizer = projector, tokenizer
        seeing = open_projector(text, projector).read()
        self.config, self._settings = seeing.config, seeing.preprocessor

    def check_settings(self, most: int) -> None:
        check_settings(self.path, self._settings, most)

    def create(self, found: Any) -> Any:
        return found(**self._settings)


def open_folder(files: ModelFiles, tokenizer: Tokenizer) -> ModelFolder:
    """What says how a model's images are processed. Raises ModelError."""
    if files.projector is not None:
        return ProjectorFolder(files.path, files.projector, tokenizer)
    return ModelFolder(files.path, tokenizer)


def first_line(error: Exception) -> str:
    """The first line of a library's message, as part of a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_settings(path: Path, settings: dict[str, Any], max_edge: int) -> None:
    """Raises ModelError for a number in a preprocessor's settings that would make images of any size huge."""
    limits = {"height": MAX_SIDE, "width": MAX_SIDE, "shortest_edge": max_edge, "longest_edge": max_edge}
    for name, value in settings.items():
        if isinstance(value, dict):
            check_settings(path, value, max_edge)
        most = limits.get(name, MAX_NUMBER)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not abs(number) <= most:
                raise ModelError(f"{path}: {name} must be at most {most}, got {shown(number)}")


def run_processor(processor: Any, images: Sequence[Any], **options: Any) -> dict[str, npt.NDArray[Any]]:
    """Calls transformers' processor; what it finds wrong with an image is the request's fault."""
    try:
        options = {name: value for name, value in options.items() if value is not None}
        found = processor(
            images=list(images), return_tensors="np", input_data_format="channels_last", do_convert_rgb=False, **options
        )
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise RequestError(f"the model cannot take this image: {error}", "image_url") from error
    return {name: np.asarray(value) for name, value in found.items()}


def media_hash(fingerprint: bytes, kind: MediaKind, frames: Sequence[Frame], way: object) -> bytes:
    """A digest of everything that decides the encoder's rows: pixels, sizes, order, settings, and the `way` in which this
    image is cut or brought to a size."""
    digest = hashlib.blake2b(fingerprint, digest_size=16)
    digest.update(f"{kind} {way} {len(frames)}".encode())
    for frame in frames:
        digest.update(f"{frame.shape}|".encode())
        digest.update(np.ascontiguousarray(frame).data)
    return digest.digest()


def fingerprint_of(processor: Any) -> bytes:
    """A digest of a processor's class and settings."""
    settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    return hashlib.blake2b(f"{type(processor).__name__} {settings}".encode(), digest_size=16).digest()
