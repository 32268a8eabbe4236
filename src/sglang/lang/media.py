"""Images and videos as the bytes that travel in a request.

Nothing here needs an image library unless it is given an image object: files and bytes are sent as they are, and the server
decodes them.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import os
import re
import struct
import zlib
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from sglang.common.install import install_packages
from sglang.common.pil_png import encode_png

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


def load_image_data(source: Any) -> tuple[str, str]:
    """(data, mime): bare base64, or for an http(s) URL the URL itself, which the server fetches. Raises FileNotFoundError,
    TypeError, ValueError."""
    if isinstance(source, (str, os.PathLike)):
        return _load_text(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _encode(bytes(source))
    if hasattr(source, "save") and hasattr(source, "mode"):  # a PIL image
        return _encode(encode_png(source))
    if hasattr(source, "detach") and hasattr(
        source, "cpu"
    ):  # a torch tensor, channels first as image libraries of torch have it
        return _encode(_array_png(source.detach().cpu().permute(1, 2, 0).contiguous().numpy()))
    if hasattr(source, "__array_interface__"):
        return _encode(_array_png(source))
    raise TypeError(f"image() takes a path, URL, bytes, PIL image or array, not {type(source).__name__}")


def _load_text(text: str) -> tuple[str, str]:
    if re.match(r"https?://", text, re.IGNORECASE):
        return text, "image/url"
    found = re.match(r"data:([^,;]*)((?:;[^,;]*)*),(.*)", text, re.DOTALL | re.IGNORECASE)
    if found:
        return _load_data_uri(found[1].lower(), found[2].lower().split(";"), found[3])
    with open(text.removeprefix("file://"), "rb") as file:
        return _encode(file.read())


def _load_data_uri(mime: str, parameters: list[str], body: str) -> tuple[str, str]:
    if "base64" not in [parameter.strip() for parameter in parameters]:
        return _encode(unquote_to_bytes(body))
    text = "".join(unquote(body).split())
    if mime.startswith("image/"):
        return text, mime
    try:  # it does not say what it is: the bytes do
        return text, _mime(base64.b64decode(text[:64]))
    except binascii.Error as error:
        raise ValueError("the data URI is not valid base64") from error


def _encode(data: bytes) -> tuple[str, str]:
    if not data:
        raise ValueError("the image is empty")
    return base64.b64encode(data).decode(), _mime(data)


def _mime(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return next((mime for signature, mime in _SIGNATURES if data.startswith(signature)), "image/png")


def _array_png(array: Any) -> bytes:
    """A PNG file of an array [height, width] or [height, width, 1, 3 or 4] of bytes (source: the PNG standard)."""
    interface = array.__array_interface__
    shape = interface["shape"]
    if interface["typestr"] not in ("|u1", "<u1", ">u1"):
        raise TypeError(f"an image array must hold bytes (uint8), got {interface['typestr']}")
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(f"an image array must be [height, width] or [height, width, 1, 3 or 4], got {list(shape)}")
    height, width = shape[:2]
    raw, stride = array.tobytes(), width * channels
    rows = b"".join(b"\0" + raw[i * stride : (i + 1) * stride] for i in range(height))
    color = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def load_video_data(path: str, num_frames: int) -> str:
    """ "video:" and base64 of `num_frames` evenly spaced frames, each a PNG, one after the other (the original's format)."""
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        command = install_packages("opencv-python-headless")
        raise ImportError(f"video() reads frames with OpenCV: {command}") from error
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    capture = cv2.VideoCapture(path)
    try:
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if total < 1:
            raise ValueError(f"{path} has no frames that OpenCV can read")
        rate = float(capture.get(cv2.CAP_PROP_FPS) or 0)
        frames = []
        for i in range(num_frames):
            capture.set(cv2.CAP_PROP_POS_FRAMES, i * total // num_frames)
            is_read, frame = capture.read()
            if not is_read:
                break
            png = cv2.imencode(".png", frame)[1].tobytes()
            frames.append(with_time(png, i * total // num_frames / rate) if rate > 0 else png)
    finally:
        capture.release()
    return "video:" + base64.b64encode(b"".join(frames)).decode()


def with_time(png: bytes, seconds: float) -> bytes:
    """A PNG file that says, in a text chunk that other readers skip, when it is shown."""
    body = b"Seconds\0" + f"{seconds:.3f}".encode()
    chunk = struct.pack(">I", len(body)) + b"tEXt" + body + struct.pack(">I", zlib.crc32(b"tEXt" + body))
    head = 8 + 25  # the signature and IHDR, which comes first
    return png[:head] + chunk + png[head:]
