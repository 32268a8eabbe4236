"""An image from wherever it is, for programs that prepare requests. It runs in the caller's process with the caller's rights;
what a server fetches for strangers is another matter and has rules of its own."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import httpx

from sglang.srt.errors import RequestError, UnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 64 << 20
MAX_PIXELS = 100_000_000
FETCH_SECONDS = 20.0


def load_image(source: Any) -> tuple[Image, tuple[int, int]]:
    """The decoded image and its (width, height).

    `source` is an http(s) or file URL, a data URL, a path, base64 text, bytes, or a PIL image, which is returned as it is.
    Raises RequestError if there is no image behind it, UnsupportedError if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError("images need Pillow: pip install 'sglang-anywhere[vision]'") from error
    if isinstance(source, Image.Image):
        return source, source.size
    data = bytes(source) if isinstance(source, (bytes, bytearray, memoryview)) else _read(source)
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise RequestError(f"the image has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are allowed")
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"not an image that can be read: {error}") from error
    return image, image.size


def _read(source: Any) -> bytes:
    if isinstance(source, Path):
        return _read_file(source)
    if not isinstance(source, str) or not source:
        raise RequestError(f"an image must be a URL, a path, base64 text, bytes or a PIL image, got {type(source).__name__}")
    scheme = source.split(":", 1)[0].lower() if ":" in source[:10] else ""
    if scheme in ("http", "https"):
        return _fetch(source)
    if scheme == "file":
        return _read_file(Path(unquote(urlsplit(source).path)))
    if scheme == "data":
        head, _, body = source.partition(",")
        return _decode_base64(body) if head.endswith(";base64") else unquote(body).encode("latin-1", "replace")
    if len(source) < 4096 and Path(source).is_file():
        return _read_file(Path(source))
    if len(source) < 64:
        raise RequestError(f"there is no image file {source!r}")
    return _decode_base64(source)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"cannot read the image {path}: {error.strerror}") from error
    return _checked(data)


def _decode_base64(text: str) -> bytes:
    try:
        return _checked(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise RequestError("the image is neither a file nor valid base64") from error


def _fetch(url: str) -> bytes:
    data = bytearray()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=FETCH_SECONDS) as response:
            response.raise_for_status()
            for piece in response.iter_bytes():
                data += piece
                if len(data) > MAX_BYTES:
                    break
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RequestError(f"cannot fetch the image {url}: {error}") from error
    return _checked(bytes(data))


def _checked(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise RequestError(f"the image is larger than {MAX_BYTES} bytes")
    return data
