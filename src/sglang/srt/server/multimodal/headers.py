"""Reads the header of an image file: its size and number of frames, without decoding.

Files are untrusted: reading is a bounded number of reads at offsets that the file names, and a file that makes no sense is a
RequestError. The decoder, in its own process, is limited to the sizes that were read here (decode_work.py).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sglang.srt.errors import RequestError

Data = bytes | bytearray

PNG_START = b"\x89PNG\r\n\x1a\n"
MAX_ASPECT = 200
"""longest side over shortest"""
MAX_SCANS = 100
"""of a progressive JPEG; encoders make about ten, and each costs as much as the whole image"""
MAX_PARTS = 1 << 16
"""chunks, markers or directory entries that are visited in a file"""
SEARCH_BYTES = 1 << 20
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True)
class Shape:
    """Frames of one size."""

    width: int
    height: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        """Pixels of all frames together."""
        return self.width * self.height * self.frames


class _Reader:
    """Reads numbers at places; beyond the end is struct.error. Counts its steps."""

    def __init__(self, data: Data, order: str = ">") -> None:
        self.data = data
        self.order = order
        self._steps = 0

    def at(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(self.order + form, self.data, offset)

    def step(self, size: int = 1) -> None:
        self._steps += size
        if self._steps > MAX_PARTS + len(self.data) // 200:  # blocks of a GIF have up to 255 bytes
            raise ValueError("more parts than any encoder makes")


def measure_image(data: Data, label: str, max_frames: int) -> Shape | None:
    """None for what is no image file. `frames` is exact up to `max_frames`, and larger than that where there are more; with 0
    a TIFF file is its first page. Raises RequestError."""
    for is_format, measure in _FORMATS:
        if is_format(data):
            try:
                shape = measure(_Reader(data), max_frames)
            except (struct.error, ValueError, IndexError) as error:
                raise RequestError(f"{label} is damaged or cut off and cannot be decoded") from error
            if shape.width < 1 or shape.height < 1 or shape.frames < 1:
                raise RequestError(f"{label} has no pixels")
            return shape
    return None


def check_size(shape: Shape, max_pixels: int, label: str) -> None:
    """Raises RequestError for an image that is empty, too large or too thin."""
    width, height = shape.width, shape.height
    if width < 1 or height < 1:
        raise RequestError(f"{label} has no pixels")
    if width * height > max_pixels:
        raise RequestError(f"{label} has {width} x {height} pixels; at most {max_pixels} are allowed (--max-image-pixels)")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RequestError(f"{label} is {width} x {height}: the longer side may be at most {MAX_ASPECT} times the shorter")


# --- formats ----------------------------------------------------------------------------------------------------------------


def _png(reader: _Reader, max_frames: int) -> Shape:
    """One PNG, animated or not, or several one after another (how the language's `video()` packs frames)."""
    width = height = frames = at = 0
    while at < len(reader.data) and frames <= max_frames:
        if bytes(reader.data[at : at + 8]) != PNG_START:
            if frames:
                break  # something behind the last image
            raise ValueError("no PNG")
        at += 8
        w, h = reader.at("II", at + 8)
        width, height = max(width, w), max(height, h)
        own, at = _after_png(reader, at)
        frames += own
    return Shape(width, height, frames)


def _after_png(reader: _Reader, at: int) -> tuple[int, int]:
    """The number of frames in the PNG whose first chunk is at `at`, and where it ends."""
    frames, in_animation, name = 0, False, b""
    while name != b"IEND" and at + 12 <= len(reader.data):
        reader.step()
        (length,) = reader.at("I", at)
        name = bytes(reader.data[at + 4 : at + 8])
        if name == b"acTL":
            (frames,) = reader.at("I", at + 8)
        elif name == b"fcTL":
            in_animation = True
        elif name == b"IDAT" and frames and not in_animation:  # an image for those who know no animations
            frames, in_animation = frames + 1, True
        at += 12 + length
    return max(frames, 1), at


def _jpeg(reader: _Reader, max_frames: int) -> Shape:
    """Markers are visited up to the end of the first image, and scans counted."""
    scans = 0
    shape: Shape | None = None
    for marker, at, _ in _jpeg_segments(reader):
        if marker in _JPEG_SIZES and shape is None:
            height, width = reader.at("HH", at + 5)
            shape = Shape(width, height)
        scans += marker == _JPEG_SCAN
        if scans > MAX_SCANS:
            raise ValueError("more scans than any encoder makes")
    if shape is None:
        raise ValueError("no frame header")
    return shape


def _jpeg_segments(reader: _Reader) -> Iterator[tuple[int, int, int]]:
    """(marker, where it stands, where the next may stand) of what has a length, and of the end; beyond the file's end where it
    is cut off. The data of a scan belong to its marker."""
    data, at = reader.data, 2
    while at + 2 <= len(data):
        reader.step()
        if data[at] != 0xFF:  # junk between segments, which decoders skip
            at = data.find(b"\xff", at)
            if at < 0:
                return
            continue
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _JPEG_BARE or marker == 0:
            at += 2
            continue
        after = at + 2 if marker == _JPEG_END else at + 4 if at + 4 > len(data) else at + 2 + max(2, *reader.at("H", at + 2))
        if marker == _JPEG_SCAN and after <= len(data):
            after = _end_of_scan(data, after)
        yield marker, at, after
        if marker == _JPEG_END:
            return
        at = after


def _end_of_scan(data: Data, at: int) -> int:
    """The place of the next marker. Searched piece by piece, since a search lets no other thread run."""
    for begin in range(at, len(data), SEARCH_BYTES):
        found = _AFTER_SCAN.search(data, begin, begin + SEARCH_BYTES + 1)
        if found:
            return found.start()
    return len(data)


def cut_of_jpeg(data: Data) -> int | None:
    """The end of the last complete segment of a JPEG that lacks its end; None for a complete JPEG."""
    end = 2
    for marker, at, after in _jpeg_segments(_Reader(data)):
        if marker == _JPEG_END:
            return None
        if after > len(data):
            return at
        end = after
    return end


def _gif(reader: _Reader, max_frames: int) -> Shape:
    """Frames are counted by walking over their blocks. A frame may lie partly outside the screen, which grows."""
    reader.order = "<"
    width, height, flags = reader.at("HHB", 6)
    at, frames = 13 + _palette(flags), 0
    while at < len(reader.data) and frames <= max_frames:
        reader.step()
        kind = reader.data[at]
        if kind == 0x3B:
            break
        if kind == 0x21:
            at = _after_blocks(reader, at + 2)
        elif kind == 0x2C:
            if at + 10 > len(reader.data):
                break
            left, top, w, h, flags = reader.at("HHHHB", at + 1)
            width, height = max(width, left + w), max(height, top + h)
            frames += 1
            at = _after_blocks(reader, at + 10 + _palette(flags) + 1)
        else:
            at += 1  # junk, which decoders skip
    return Shape(width, height, frames)


def _palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(reader: _Reader, at: int) -> int:
    while at < len(reader.data) and reader.data[at]:
        reader.step()
        at += 1 + reader.data[at]
    return at + 1


def _webp(reader: _Reader, max_frames: int) -> Shape:
    reader.order = "<"
    data, name = reader.data, bytes(reader.data[12:16])
    if name == b"VP8 ":
        width, height = reader.at("HH", 26)
        return Shape(width & 0x3FFF, height & 0x3FFF)
    if name == b"VP8L":
        (bits,) = reader.at("I", 21)
        return Shape((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if name != b"VP8X":
        raise ValueError("no WebP")
    is_animated = bool(reader.at("B", 20)[0] & 2)
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    at, frames = 12, 0
    while is_animated and at + 8 <= len(data) and frames <= max_frames:
        reader.step()
        (length,) = reader.at("I", at + 4)
        frames += bytes(data[at : at + 4]) == b"ANMF"
        at += 8 + length + length % 2
    return Shape(width, height, frames if is_animated else 1)


def is_avif(data: Data) -> bool:
    """Whether the brands of a file in boxes (ISO 14496-12) say AVIF."""
    brands = bytes(data[8:12] + data[16 : min(int.from_bytes(data[:4], "big"), 256)])
    return data[4:8] == b"ftyp" and any(brands[i : i + 4] in (b"avif", b"avis") for i in range(0, len(brands), 4))


def _avif(reader: _Reader, max_frames: int) -> Shape:
    """The size is that of the largest part: an image may be made of several, or have a small one beside it."""
    width = height = frames = 0
    is_sequence = reader.data[8:12] == b"avis"
    for name, at in _boxes(reader):
        if name == b"ispe":
            w, h = reader.at("II", at + 4)
        elif name == b"tkhd" and is_sequence:
            w, h = (side >> 16 for side in reader.at("II", at + (88 if reader.data[at] else 76)))
        else:
            frames = max(frames, *reader.at("I", at + 8)) if name == b"stsz" else frames
            continue
        width, height = max(width, w), max(height, h)
    return Shape(width, height, max(frames, 1) if is_sequence else 1)


_BOXES_OF_BOXES = frozenset([b"meta", b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl"])


def _boxes(reader: _Reader) -> Iterator[tuple[bytes, int]]:
    """Names, and where the contents begin, of all boxes in which sizes and counts may stand."""
    spans = [(0, len(reader.data))]
    while spans:
        at, end = spans.pop()
        while at + 8 <= end:
            reader.step()
            (size,), name = reader.at("I", at), bytes(reader.data[at + 4 : at + 8])
            begin = at + (16 if size == 1 else 8)
            after = end if size == 0 else min(at + (reader.at("Q", at + 8)[0] if size == 1 else size), end)
            if after < begin:
                raise ValueError("a box smaller than its head")
            yield name, begin
            if name in _BOXES_OF_BOXES:
                spans.append((begin + (4 if name == b"meta" else 0), after))
            at = after


def _bmp(reader: _Reader, max_frames: int) -> Shape:
    reader.order = "<"
    (size,) = reader.at("I", 14)
    width, height = reader.at("HH", 18) if size == 12 else reader.at("ii", 18)
    return Shape(width, abs(height))


def has_pages(data: Data) -> bool:
    """TIFF: several images in one file are no animation."""
    return data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def _tiff(reader: _Reader, max_frames: int) -> Shape:
    """Pages are the file's directories; the size is that of the largest."""
    reader.order = "<" if reader.data[:2] == b"II" else ">"
    is_big = reader.at("H", 2)[0] == 43
    place, entry = ("Q", 20) if is_big else ("I", 12)
    (at,) = reader.at(place, 8 if is_big else 4)
    width = height = frames = 0
    seen: set[int] = set()
    while at and at not in seen and frames <= max_frames:
        seen.add(at)
        (count,) = reader.at("Q" if is_big else "H", at)
        begin = at + (8 if is_big else 2)
        reader.step(count + 1)
        w, h = (_tiff_number(reader, begin, count, entry, tag) for tag in (256, 257))
        width, height, frames = max(width, w), max(height, h), frames + 1
        end = begin + count * entry
        at = reader.at(place, end)[0] if end + struct.calcsize("=" + place) <= len(reader.data) else 0
    return Shape(width, height, frames)


def _tiff_number(reader: _Reader, begin: int, count: int, entry: int, tag: int) -> int:
    """The largest value that a directory gives for a tag; 0 if it gives none."""
    found = 0
    for at in range(begin, begin + count * entry, entry):
        if reader.at("H", at)[0] == tag:
            (kind,) = reader.at("H", at + 2)
            form = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if form is None:
                raise ValueError("a size that is not a number")
            found = max(found, *reader.at(form, at + (8 if entry == 12 else 12)))
    return found


_FORMATS: tuple[tuple[Callable[[Data], bool], Callable[[_Reader, int], Shape]], ...] = (
    (lambda data: data.startswith(b"\x89PNG"), _png),
    (lambda data: data.startswith(b"\xff\xd8"), _jpeg),
    (lambda data: data.startswith((b"GIF87a", b"GIF89a")), _gif),
    (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _webp),
    (lambda data: data.startswith(b"BM"), _bmp),
    (has_pages, _tiff),
    (is_avif, _avif),
)
