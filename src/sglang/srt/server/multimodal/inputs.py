"""Validates the images and videos that a request names. Needs no image library: it is imported for every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sglang.common.pil_png import encode_png
from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.fields import check_members

Detail = Literal["auto", "low", "high", "original"]
PART_HINTS = frozenset({"cache_control", "prompt_cache_breakpoint"})
"""what clients put into parts of a message for servers that are told what to keep; it changes no answer"""
MAX_PIXELS = 1 << 30
MODALITIES = frozenset({"image", "multi-images", "video"})


@dataclass(frozen=True)
class Pixels:
    """The range of pixels that a request sets for each image or frame; 0: the model's own."""

    least: int = 0
    most: int = 0


@dataclass(frozen=True)
class View:
    """The resolution at which an image is read. `alone`: the prompt has no other image. `max_tokens`: that it may take; 0: as
    its publisher has it."""

    detail: Detail = "auto"
    alone: bool = True
    pixels: Pixels = Pixels()
    max_tokens: int = 0


@dataclass(frozen=True)
class MediaInput:
    """An image or video as a request names it."""

    kind: MediaKind
    source: str | bytes
    detail: Detail = "auto"
    pixels: Pixels = Pixels()


@dataclass(frozen=True)
class MediaTask:
    """A prompt's ids, with placeholders, and what is shown in their place."""

    ids: list[int]
    inputs: Sequence[MediaInput]


def parse_media(body: dict[str, Any], count: int, is_batch: bool) -> list[list[MediaInput]] | None:
    """`image_data` and `video_data` of a /generate body for each of `count` prompts; None if there are none. A single item
    stands for all prompts; a list, in a batch, has one entry for each prompt, which may be a list itself. Raises RequestError.
    """
    if body.get("audio_data") not in (None, [], ""):
        raise UnsupportedError("audio_data is not supported: this server takes no audio", "audio_data")
    pixels = parse_pixels(body.get("mm_processor_kwargs"), "mm_processor_kwargs")
    found: list[list[MediaInput]] = [[] for _ in range(count)]
    for name, kind in (("image_data", "image"), ("video_data", "video")):
        value = body.get(name)
        if value in (None, [], ""):
            continue
        for inputs, given in zip(found, _for_each(name, value, count, is_batch), strict=True):
            inputs += [replace(_input(name, kind, item), pixels=pixels) for item in given]  # type: ignore[arg-type]
    _check_modalities(body.get("modalities"))
    return found if any(found) else None


def _for_each(name: str, value: Any, count: int, is_batch: bool) -> list[list[Any]]:
    if not isinstance(value, list):
        return [[value]] * count
    if not is_batch:
        nested = len(value) == 1 and isinstance(value[0], list)
        return [value[0] if nested else value]
    if len(value) != count:
        raise RequestError(f"{name} has {len(value)} entries for {count} prompts", name)
    return [item if isinstance(item, list) else [] if item is None else [item] for item in value]


def _input(name: str, kind: MediaKind, item: Any) -> MediaInput:
    if isinstance(item, str):
        if item.startswith("video:"):  # how the language packs frames
            return MediaInput("video", item[len("video:") :])
        return MediaInput(kind, item)
    if isinstance(item, (bytes, bytearray)):
        return MediaInput(kind, bytes(item))
    if hasattr(item, "save") and hasattr(item, "mode"):  # a PIL image, given to the Engine
        return MediaInput(kind, png_of(item, name))
    raise RequestError(f"{name} must hold URLs, data URIs or base64 text, not {type(item).__name__}", name)


def png_of(image: Any, name: str) -> bytes:
    """A PIL image as a PNG file, with all its bits and turned as it says. Raises RequestError."""
    try:
        return encode_png(image)
    except TypeError as error:
        raise RequestError(f"{name}: {error}", name) from error


def parse_pixels(value: Any, where: str) -> Pixels:
    """`min_pixels` and `max_pixels`, of a request or of one of its parts. Raises RequestError."""
    if value is None:
        return Pixels()
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object with min_pixels and max_pixels", where)
    for key in value:
        if key not in ("min_pixels", "max_pixels"):
            raise UnsupportedError(f"{where}: {str(key)[:100]!r} is not supported; known are min_pixels and max_pixels", where)
    least, most = (_pixels(value, key, where) for key in ("min_pixels", "max_pixels"))
    if 0 < most < least:
        raise RequestError(f"{where}: min_pixels ({least}) is more than max_pixels ({most})", where)
    return Pixels(least, most)


def _pixels(value: dict[str, Any], key: str, where: str) -> int:
    """0 where nothing is said."""
    number = value.get(key)
    if number is None:
        return 0
    if type(number) is not int or not 0 < number <= MAX_PIXELS:
        raise RequestError(f"{where}.{key} must be a number of pixels from 1 to {MAX_PIXELS}", where)
    return number


def with_pixels(inputs: Sequence[MediaInput], wanted: Pixels) -> list[MediaInput]:
    """Applies a request's settings for all images to those that have none of their own."""
    return [item if item.pixels != Pixels() else replace(item, pixels=wanted) for item in inputs]


def _check_modalities(value: Any) -> None:
    """They say what the data says already; only a contradiction would matter."""
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(item, str) or item not in MODALITIES:
            shown = repr(item[:100]) if isinstance(item, str) else type(item).__name__
            raise UnsupportedError(f"modalities: {shown} is not supported", "modalities")


_PIXEL_KEYS = ("min_pixels", "max_pixels")
"""of a part, beside its URL or beside the object that holds it"""


def parse_part(part: dict[str, Any], where: str) -> MediaInput | None:
    """An `image_url` or `video_url` part of a chat message; None for parts of other types. Raises RequestError."""
    kinds: dict[str, MediaKind] = {"image_url": "image", "video_url": "video"}
    name = part.get("type")
    if not isinstance(name, str) or name not in kinds:
        return None
    check_members(part, ("type", name, *_PIXEL_KEYS, *PART_HINTS), where, "messages")
    given = part.get(name)
    fields = {"url": given} if isinstance(given, str) else given
    if not isinstance(fields, dict) or not isinstance(fields.get("url"), str) or not fields["url"]:
        raise RequestError(f'{where} must be an object like {{"type": "{name}", "{name}": {{"url": "..."}}}}', "messages")
    for key in fields:
        if key not in ("url", "detail", *_PIXEL_KEYS):
            known = "url, detail, min_pixels and max_pixels"
            raise RequestError(f"{where}.{name}: unknown key {str(key)[:100]!r}; known are {known}", "messages")
    wishes = {key: found[key] for found in (part, fields) for key in _PIXEL_KEYS if key in found}
    wanted = fields.get("detail")
    details: dict[Any, Detail] = {None: "auto", "auto": "auto", "low": "low", "high": "high", "original": "original"}
    if not (wanted is None or isinstance(wanted, str)) or wanted not in details:
        raise RequestError(f"{where}.{name}.detail must be auto, low, high or original", "messages")
    return MediaInput(kinds[name], fields["url"], details[wanted], parse_pixels(wishes, where))
