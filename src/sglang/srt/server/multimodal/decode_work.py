"""The work of a decoding child: decodes a file to RGB, band by band, and sends each band at once.

    order, file --work--> rows of 8-bit RGB, frame after frame        (isolation.py starts, limits and ends the process)

Transparent pixels become white, 16-bit samples keep their upper half, images are rotated as EXIF says. Apart from the decoder's own
buffer no copy of a whole image is made. Any exception of a decoder becomes one sentence.
"""

from __future__ import annotations

import importlib
import io
import resource
import struct
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

import msgspec
import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.Image import Transpose

from sglang.common.pil_png import ORIENTATION
from sglang.srt.errors import RequestError
from sglang.srt.server.multimodal.clip import Clock
from sglang.srt.server.multimodal.headers import PNG_START, Shape, cut_of_jpeg
from sglang.srt.server.multimodal.media import FORMATS
from sglang.srt.server.multimodal.video_files import VideoFile

PLUGINS = (AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin,
           WebPImagePlugin)  # fmt: skip
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
BAND_PIXELS = 1 << 17
BYTES_OF_A_PIXEL = 16
"""that decoders take at most: coefficients of a progressive JPEG and Pillow's 4; planes of a WebP; three canvases of a GIF"""
MEMORY = 96 << 20
"""bytes that decoders take besides"""
REFERENCE_FRAMES = 3
"""times BYTES_OF_A_PIXEL: what video codecs keep of frames that others refer to"""

_DECODER_ERRORS = (
    OSError,  # truncated, unidentified
    SyntaxError,  # Pillow's word for a broken PNG
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    AttributeError,
    AssertionError,
    RuntimeError,  # of the AVIF decoder; too deep a recursion
    ZeroDivisionError,
    struct.error,
    zlib.error,
)


class Order(msgspec.Struct, frozen=True):
    """How to decode a file. `pixels`: all that its frames may have together, as its header promised or the request allows;
    `container`: as in media.Medium; `measure`: only tell the shape; `memory`: bytes that the process may take besides the file,
    0: as its limits say."""

    label: str
    is_video: bool
    pixels: int
    max_pixels: int
    max_frames: int
    seconds: float
    container: str | None = None
    measure: bool = False
    memory: int = 0


class Decoded(msgspec.Struct, frozen=True):
    """The shape of what was sent, and the times of its frames where the file tells them; or the sentence that says what is
    wrong."""

    width: int = 0
    height: int = 0
    frames: int = 0
    times: tuple[float, ...] = ()
    warning: str = ""
    """what is wrong with a file that was decoded all the same"""
    error: str = ""

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.height, self.frames)


Bands = Generator[bytes, None, Decoded]
"""rows of RGB, and what they are together"""


def prepare(setup: bytes) -> Callable[[bytes], Generator[bytes, None, bytes]]:
    """Called once in the process that all children are forked from. `setup`: b"video" if video files are to be decoded."""
    # Sizes are checked here, against our own limits.
    warnings.filterwarnings("ignore")
    Image.MAX_IMAGE_PIXELS = None
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has its own memory
    if setup == b"video":
        with suppress(ImportError):
            importlib.import_module("av")
    return work


def pack(order: Order) -> bytes:
    """The header that is sent before the file."""
    head = msgspec.msgpack.encode(order)
    return struct.pack("<I", len(head)) + head


def work(payload: bytes) -> Generator[bytes, None, bytes]:
    """One job. Returns a Decoded, packed."""
    (size,) = struct.unpack_from("<I", payload)
    order = msgspec.msgpack.decode(memoryview(payload)[4 : 4 + size], type=Order)
    if order.memory:
        _limit_memory(order.memory + 2 * len(payload))
    data = payload[4 + size :]
    del payload
    try:
        decoded = yield from decode_bands(order, data)
    except RequestError as error:
        decoded = Decoded(error=str(error))
    return msgspec.msgpack.encode(decoded)


def memory_for(frame_pixels: int, is_container: bool) -> int:
    """Bytes that decoding frames of that size may take."""
    return MEMORY + BYTES_OF_A_PIXEL * frame_pixels * (REFERENCE_FRAMES if is_container else 1)


def _limit_memory(more: int) -> None:
    """Lowers what this process may use."""
    with suppress(OSError, ValueError), open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = mapped + more
        resource.setrlimit(resource.RLIMIT_AS, (wanted if soft < 0 else min(soft, wanted), hard))


def decode_bands(order: Order, data: bytes) -> Bands:
    """The rows of all frames. Raises RequestError."""
    if order.container is not None:
        video = VideoFile(data, order.container, order.label, order.max_pixels, order.max_frames, order.seconds)
        return (yield from _video_bands(video, order))
    with _sentence(order.label):
        cut = cut_of_jpeg(data) if data.startswith(JPEG_START) else None
    if cut is not None:
        data = data[:cut] + JPEG_END
    images = _images(data, order)
    shape: Shape | None = None
    pixels, clock, warning = 0, Clock(), ""
    for image in images:
        pixels += image.width * image.height
        if pixels > order.pixels:
            raise RequestError(f"{order.label} is damaged: it has more pixels than its header promises")
        with _sentence(order.label):
            image.load()
            warning = _check_cut(image, order.label) if cut is not None else ""
            size = yield from _bands(image, order.label)
        clock.add(image.info)
        if shape is not None and size != (shape.width, shape.height):
            raise RequestError(f"the frames of {order.label} differ in size")
        shape = Shape(*size, 1 if shape is None else shape.frames + 1)
    if shape is None:
        raise RequestError(f"{order.label} has no pixels")
    return Decoded(shape.width, shape.height, shape.frames, clock.times, warning)


def _video_bands(video: VideoFile, order: Order) -> Bands:
    with video:
        if order.measure:
            expected = video.expected()
            return Decoded(expected.width, expected.height, expected.frames)
        shape: Shape | None = None
        pixels, times = 0, []
        for seconds, frame in video.frames():
            height, width, _ = frame.shape
            pixels += height * width
            if pixels > order.pixels:
                raise RequestError(f"{order.label} has too many pixels: {order.pixels} are allowed (--max-media-pixels)")
            if shape is not None and (width, height) != (shape.width, shape.height):
                raise RequestError(f"the frames of {order.label} differ in size")
            shape = Shape(width, height, 1 if shape is None else shape.frames + 1)
            times.append(seconds)
            yield frame.tobytes()
    assert shape is not None
    return Decoded(shape.width, shape.height, shape.frames, tuple(times))


@contextmanager
def _sentence(label: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a RequestError that names the source."""
    try:
        yield
    except MemoryError as error:
        raise RequestError(f"{label} needs too much memory to be decoded") from error
    except _DECODER_ERRORS as error:
        raise RequestError(f"{label} is damaged or cut off and cannot be decoded") from error


# --- images -----------------------------------------------------------------------------------------------------------------


def _images(data: bytes, order: Order) -> Iterator[Image.Image]:
    """The frames of a file, decoded one by one."""
    if not order.is_video:
        with _sentence(order.label):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        yield image
        return
    parts = split_pngs(data) if data.startswith(PNG_START) else [data]
    for part in parts:
        with _sentence(order.label):
            image = Image.open(io.BytesIO(part), formats=FORMATS)
            count = int(getattr(image, "n_frames", 1))
        for index in range(count):
            with _sentence(order.label):
                image.seek(index)
            yield image


def split_pngs(data: bytes) -> list[bytes]:
    """PNG files that stand one after another in `data` (how the language's `video()` packs frames). Raises RequestError."""
    parts, start = [], 0
    while start < len(data):
        if not data.startswith(PNG_START, start):
            raise RequestError("a frame of the video is not a PNG image")
        at = start + 8
        while True:
            if at + 12 > len(data):
                raise RequestError("a frame of the video is cut off")
            length, name = struct.unpack_from(">I4s", data, at)
            at += 12 + length
            if name == b"IEND":
                break
        parts.append(data[start:at] if start or at < len(data) else data)
        start = at
    return parts


def _check_cut(image: Image.Image, label: str) -> str:
    """A warning about a JPEG that lacks its end: the decoder makes grey what it has no data for. Raises RequestError if that is
    most of the image."""
    missing = _grey_rows(image)
    if 2 * missing > image.height:
        raise RequestError(f"{label} is cut off: {image.height - missing} of its {image.height} rows are there")
    return f"is cut off: the last {missing} of its {image.height} rows are grey" if missing else "lacks its last bytes"


def _grey_rows(image: Image.Image) -> int:
    """The number of rows at the bottom with the grey of missing coefficients."""
    width, height = int(image.width), int(image.height)
    step = max(BAND_PIXELS // width, 1)
    for bottom in range(height, 0, -step):
        top = max(bottom - step, 0)
        band = np.asarray(image.crop((0, top, width, bottom))).reshape(bottom - top, -1)
        shown = np.flatnonzero(((band != 127) & (band != 128)).any(axis=1))
        if len(shown):
            return height - top - 1 - int(shown[-1])
    return height


TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright"""


def _bands(image: Image.Image, label: str) -> Generator[bytes, None, tuple[int, int]]:
    """The rows of an upright image, some at a time. Returns its size."""
    orientation = _orientation(image)
    width, height = (image.height, image.width) if orientation in (5, 6, 7, 8) else image.size
    step = max(BAND_PIXELS // max(width, 1), 1)
    for top in range(0, height, step):
        band = image.crop(_source_box(image.size, orientation, top, min(top + step, height)))
        band = to_rgb(band, label)
        if orientation in TURNS:
            band = band.transpose(TURNS[orientation])
        yield band.tobytes()
    return width, height


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where EXIF is damaged: the image may be intact."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return found if found in TURNS else 1


def _source_box(size: tuple[int, int], orientation: int, top: int, bottom: int) -> tuple[int, int, int, int]:
    """The box of the stored image that holds rows `top` to `bottom` of the upright image."""
    width, height = size
    if orientation in (5, 6):
        return top, 0, bottom, height
    if orientation in (7, 8):
        return width - bottom, 0, width - top, height
    if orientation in (3, 4):
        return 0, height - bottom, width, height - top
    return 0, top, width, bottom


def to_rgb(image: Image.Image, label: str) -> Image.Image:
    """8-bit RGB of an image, or a part of one, in any mode."""
    if image.mode == "F":
        raise RequestError(f"{label} has floating-point samples, which have no standard range")
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey samples of 16 bits (modes I and I;16*), rounded to 8."""
    samples = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
    return Image.fromarray(((samples + 128) // 257).astype(np.uint8))
