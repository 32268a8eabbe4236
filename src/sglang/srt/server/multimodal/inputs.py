"""Images and videos as requests name them, checked for form. Needs no image library: this is read for every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.fields import check_members

Detail = Literal["auto", "low", "high"]
PART_HINTS = frozenset({"cache_control"})
"""what clients put into parts of a message for servers that are told what to keep; it changes no answer"""
MODALITIES = frozenset({"image", "multi-images", "video"})


@dataclass(frozen=True)
class MediaInput:
    """An image or video as a request names it."""

    kind: MediaKind
    source: str | bytes
    detail: Detail = "auto"


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
        raise UnsupportedError("audio_data: this server has no ears", "audio_data")
    found: list[list[MediaInput]] = [[] for _ in range(count)]
    for name, kind in (("image_data", "image"), ("video_data", "video")):
        value = body.get(name)
        if value in (None, [], ""):
            continue
        for inputs, given in zip(found, _for_each(name, value, count, is_batch), strict=True):
            inputs += [_input(name, kind, item) for item in given]  # type: ignore[arg-type]
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
        buffer = BytesIO()
        (item if item.mode in ("L", "LA", "P", "RGB", "RGBA") else item.convert("RGB")).save(buffer, format="PNG")
        return MediaInput(kind, buffer.getvalue())
    raise RequestError(f"{name} must hold URLs, data URIs or base64 text, not {type(item).__name__}", name)


def _check_modalities(value: Any) -> None:
    """They say what the data says already; only a contradiction would matter."""
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(item, str) or item not in MODALITIES:
            shown = repr(item[:100]) if isinstance(item, str) else type(item).__name__
            raise UnsupportedError(f"modalities: {shown} is not supported", "modalities")


def parse_part(part: dict[str, Any], where: str) -> MediaInput | None:
    """An `image_url` or `video_url` part of a chat message; None for parts of other types. Raises RequestError."""
    kinds: dict[str, MediaKind] = {"image_url": "image", "video_url": "video"}
    name = part.get("type")
    if not isinstance(name, str) or name not in kinds:
        return None
    check_members(part, ("type", name, *PART_HINTS), where, "messages")
    given = part.get(name)
    fields = {"url": given} if isinstance(given, str) else given
    if not isinstance(fields, dict) or not isinstance(fields.get("url"), str) or not fields["url"]:
        raise RequestError(f'{where} must be an object like {{"type": "{name}", "{name}": {{"url": "..."}}}}', "messages")
    for key in fields:
        if key not in ("url", "detail"):
            raise RequestError(f"{where}.{name}: unknown key {str(key)[:100]!r}; known are url and detail", "messages")
    wanted = fields.get("detail")
    details: dict[Any, Detail] = {None: "auto", "auto": "auto", "low": "low", "high": "high"}
    if not (wanted is None or isinstance(wanted, str)) or wanted not in details:
        raise RequestError(f"{where}.{name}.detail must be auto, low or high", "messages")
    return MediaInput(kinds[name], fields["url"], details[wanted])
