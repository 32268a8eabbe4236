"""`load_image`: loads an image from a path, a URL or bytes, for programs that pass it on to `image()`.

This runs in the caller's process with the caller's rights, so unlike the server it opens any path and any host.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from PIL import Image

TIMEOUT = 30.0
MAX_BYTES = 256 << 20


def load_image(source: Any) -> tuple[Image.Image, tuple[int, int]]:
    """The image and its (width, height). `source`: an http(s) URL, a file URL, a path, a data URI, base64 text, the bytes
    of an image file, or a PIL image. Raises ValueError if there is no image in it."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Image.Image):
        return source, source.size
    data = bytes(source) if isinstance(source, (bytes, bytearray, memoryview)) else _read(source)
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no image can be read from {_shown(source)}: {error}") from error
    return image, image.size


def _shown(source: Any) -> str:
    text = source if isinstance(source, (str, Path)) else type(source).__name__
    return repr(str(text)[:80])


def _read(source: Any) -> bytes:
    if isinstance(source, Path):
        return _read_file(source)
    if not isinstance(source, str):
        raise ValueError(f"an image may be a URL, a path, bytes or a PIL image, not {type(source).__name__}")
    if source.startswith(("http://", "https://")):
        return _download(source)
    if source.startswith("data:"):
        return _base64(source.partition(",")[2], source)
    if source.startswith("file://"):
        return _read_file(Path(unquote(urlsplit(source).path)))
    if len(source) < 4096 and Path(source).is_file():
        return _read_file(Path(source))
    return _base64(source, source)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {_shown(path)}: {error.strerror}") from error


def _base64(text: str, source: str) -> bytes:
    import base64
    import binascii

    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"{_shown(source)} is not a file, a URL or base64 data") from error


def _download(url: str) -> bytes:
    import httpx

    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ValueError(f"{url!r} has more than {MAX_BYTES} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"{_shown(url)} cannot be fetched: {error}") from error
    return bytes(data)
