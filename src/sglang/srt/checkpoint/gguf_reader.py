"""Reads GGUF files: metadata and tensors of a mapped file (source: the GGUF specification, versions 2 and 3).

    magic "GGUF" | version u32 | number of tensors u64 | number of keys u64
    keys:     name, type u32, value              strings are u64 length + bytes; arrays are type u32, count u64, elements
    tensors:  name, dims u32, sizes u64 (fastest first), block type u32, offset u64 into the data
    data, aligned to `general.alignment`

Files are untrusted: every count and offset is checked against the file's size before anything is allocated or read. Opening walks
the header once and decodes values lazily, since a vocabulary has 100,000 strings that only the tokenizer needs.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.files import check_regular, shown
from sglang.srt.checkpoint.gguf_parts import part_names
from sglang.srt.errors import ModelError

MAGIC = b"GGUF"
MAX_DIMS = 4
MAX_ARRAY_DEPTH = 4
MAX_KEYS, MAX_TENSORS, MAX_NAME_BYTES = 1 << 14, 1 << 17, 1 << 12
MAX_STRINGS, MAX_NESTED, MAX_PARTS = 1 << 22, 1 << 16, 1 << 10
"""more than any real file has: what lies in Python's memory stays small whatever a file claims"""

BLOCK_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    14: ("q6_k", 256, 210),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
}
"""type id -> (format, values of a block, bytes of a block)"""

UNREAD_TYPES = {
    9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
}  # fmt: skip
"""types that exist and are not read here: named in the error"""

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: dict[int, str] = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""value type id -> NumPy dtype"""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of the file. `shape` is rows first. `data` is a read-only view of the mapped file: float32 of `shape` for f32,
    uint16 of `shape` (raw bits) for f16 and bf16, uint8 [rows, bytes of a row] for block formats."""

    name: str
    format: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]


@dataclass(frozen=True)
class _Entry:
    """Where a value lies: decoded when asked for. `count` is None for a scalar."""

    kind: int
    count: int | None
    start: int
    end: int


class GGUFFile:
    """An open GGUF file.

    `metadata` is a mapping whose values are int, float, bool, str, list[str] or, for arrays of numbers, NumPy arrays.
    Raises ModelError, naming the file and what to do, for anything that is not a whole GGUF file of known types.
    """

    def __init__(self, path: str | Path, data: bytes | None = None) -> None:
        """`data`: its bytes, where they are in memory; then it must be one whole file."""
        self.path = Path(path)
        self._buffers: list[mmap.mmap] = []
        self.metadata: Mapping[str, Any]
        self.tensors: dict[str, GGUFTensor]
        self.metadata, self.tensors = self._open(self.path, data)
        self._where = dict.fromkeys(self.tensors, self.path)
        if data is not None and self._num_parts() > 1:
            raise ModelError(f"{self.path} is one of several parts: merge them with llama-gguf-split --merge")
        for part in self._other_parts():
            _, tensors = self._open(part)
            if twice := sorted(tensors.keys() & self.tensors.keys()):
                raise ModelError(f"{part}: the tensor {twice[0]!r} is in {self._where[twice[0]].name} as well")
            self.tensors |= tensors
            self._where |= dict.fromkeys(tensors, part)
        wanted = self.metadata.get("split.tensors.count")
        if self._num_parts() > 1 and type(wanted) is int and wanted != len(self.tensors):
            raise ModelError(f"{self.path} and its other parts hold {len(self.tensors)} tensors, and should hold {wanted}")

    def where(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._where[name]

    def release(self) -> None:
        """Gives back the memory of pages read so far; they are read again when they are looked at again."""
        for buffer in self._buffers:
            if hasattr(mmap, "MADV_DONTNEED"):
                buffer.madvise(mmap.MADV_DONTNEED)

    def _open(self, path: Path, data: bytes | None = None) -> tuple[Mapping[str, Any], dict[str, GGUFTensor]]:
        """Metadata and tensors of one file."""
        buffer = _map(path) if data is None else data
        if isinstance(buffer, mmap.mmap):
            self._buffers.append(buffer)
        reader = _Reader(buffer, path)
        num_tensors = reader.header()
        metadata = _Metadata(reader, reader.entries())
        return metadata, reader.tensors(num_tensors, metadata.get("general.alignment", 32))

    def _num_parts(self) -> int:
        count = self.metadata.get("split.count", 1)
        if type(count) is not int or not 0 <= count <= MAX_PARTS:
            raise ModelError(f"{self.path}: split.count must be a number of parts up to {MAX_PARTS}, got {shown(count)}")
        return max(count, 1)

    def _other_parts(self) -> list[Path]:
        """The files that follow this one, where a model is split."""
        count, names = self._num_parts(), part_names(self.path.name)
        if count == 1:
            return []
        if len(names) != count:
            raise ModelError(
                f"{self.path} is one part of a model split in {count}: keep the names that end in -00001-of-{count:05}.gguf, or merge "
                "the parts with llama-gguf-split --merge"
            )
        if self.path.name != names[0]:
            raise ModelError(f"{self.path} is not the first part of a split model: pass {self.path.with_name(names[0])}")
        parts = [self.path.with_name(name) for name in names[1:]]
        for part in parts:
            if not part.exists():
                raise ModelError(f"{self.path} lacks its part {part.name}: download it into the same folder")
        return parts


_opened: tuple[tuple[object, ...], GGUFFile] | None = None
_opening = threading.Lock()


def open_gguf(path: str | Path) -> GGUFFile:
    """The file, from any thread. While a model starts several ask for it, and a header with a vocabulary takes a tenth of a second:
    so the last one stays open, and is read again only if it has changed. Raises ModelError."""
    global _opened
    with _opening:
        stamp = _stamp(Path(path))
        if _opened is None or _opened[0] != stamp:
            _opened = stamp, GGUFFile(path)
        return _opened[1]


def _stamp(path: Path) -> tuple[object, ...]:
    """What tells whether a path leads to another file than before."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_gguf(path: str | Path) -> bool:
    """Whether a file begins as GGUF files do."""
    try:
        check_regular(Path(path))
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ModelError):
        return False


def _map(path: Path) -> mmap.mmap:
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # mmap's word for an empty file
        raise ModelError(f"{path} is empty: download it again") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


class _Metadata(Mapping[str, Any]):
    """Values of the header, decoded at first access and kept, save for lists of strings."""

    def __init__(self, reader: _Reader, entries: dict[str, _Entry]) -> None:
        self._reader = reader
        self._entries = entries
        self._values: dict[str, Any] = {}
        self._lock = threading.Lock()  # the reader has one place

    def __getitem__(self, key: str) -> Any:
        if key in self._values:
            return self._values[key]
        entry = self._entries[key]
        with self._lock:
            value = self._reader.value(entry)
        if entry.kind != _STRING or entry.count is None:  # a vocabulary takes tens of megabytes, and is asked for once
            self._values[key] = value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:  # Mapping's own would decode the value
        return key in self._entries


class _Reader:
    """A cursor over the header. `pos` never passes `size` unnoticed: each read is checked."""

    def __init__(self, buffer: mmap.mmap | bytes, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.size = len(buffer)
        self.pos = 0
        self.num_keys = 0
        self.num_nested = 0

    def bad(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is not a usable GGUF file: {what}; download or convert it again")

    def header(self) -> int:
        """Checks magic and version; returns the number of tensors."""
        if self.buffer[:4] != MAGIC:
            raise ModelError(f"{self.path} is not a GGUF file: it begins with {bytes(self.buffer[:4])!r}")
        self.pos = 4
        version = self.u32()
        if version & 0xFFFF == 0:
            raise self.bad("it is big-endian, and only little-endian files are read")
        if version not in (2, 3):
            raise self.bad(f"its version is {version}, and 2 and 3 are read")
        num_tensors, self.num_keys = self.u64(), self.u64()
        counts = (("tensors", num_tensors, 24, MAX_TENSORS), ("metadata keys", self.num_keys, 13, MAX_KEYS))
        for what, count, least, most in counts:
            if count * least > self.size or count > most:
                raise self.bad(f"it claims {count} {what} in {self.size} bytes")
        return num_tensors

    # --- primitives -----------------------------------------------------------------------------------------------------------
    def skip(self, num_bytes: int) -> int:
        """Moves on by `num_bytes` and returns where they began."""
        start = self.pos
        if num_bytes > self.size - start:
            raise self.bad(f"it ends in the middle of its header ({self.size} bytes)")
        self.pos = start + num_bytes
        return start

    def u32(self) -> int:
        value: int = _U32.unpack_from(self.buffer, self.skip(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack_from(self.buffer, self.skip(8))[0]
        return value

    def name(self) -> str:
        length = self.u64()
        if length > MAX_NAME_BYTES:
            raise self.bad(f"a name in it claims to have {length} bytes")
        start = self.skip(length)
        raw = self.buffer[start : self.pos]
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.bad(f"the name {raw[:40]!r} is not valid UTF-8") from error

    # --- metadata -------------------------------------------------------------------------------------------------------------
    def entries(self) -> dict[str, _Entry]:
        entries: dict[str, _Entry] = {}
        for _ in range(self.num_keys):
            key = self.name()
            if key in entries:
                raise self.bad(f"the key {key!r} occurs twice")
            entries[key] = self.entry(self.u32(), depth=0)
        return entries

    def entry(self, kind: int, depth: int) -> _Entry:
        """Walks over one value."""
        if kind == _STRING:
            start = self.skip(self.u64())
            return _Entry(kind, None, start, self.pos)
        if kind != _ARRAY:
            start = self.skip(self.item_size(kind))
            return _Entry(kind, None, start, self.pos)
        if depth == MAX_ARRAY_DEPTH:
            raise self.bad(f"its arrays are nested deeper than {MAX_ARRAY_DEPTH}")
        inner, count = self.u32(), self.u64()
        start = self.pos
        if inner == _STRING:
            self.skip_strings(count)
        elif inner == _ARRAY:
            self.check_count(count, 12)
            self.num_nested += count
            if self.num_nested > MAX_NESTED:
                raise self.bad(f"it has more than {MAX_NESTED} nested arrays")
            for _ in range(count):
                self.entry(_ARRAY, depth + 1)
        else:
            self.skip(count * self.item_size(inner))
        return _Entry(inner, count, start, self.pos)

    def item_size(self, kind: int) -> int:
        if kind not in _SCALARS:
            raise self.bad(f"it has a metadata value of unknown type {kind}")
        return np.dtype(_SCALARS[kind]).itemsize

    def check_count(self, count: int, least_bytes: int) -> None:
        if count * least_bytes > self.size - self.pos:
            raise self.bad(f"it claims an array of {count} elements in {self.size} bytes")

    def skip_strings(self, count: int) -> None:
        self.check_count(count, 8)
        if count > MAX_STRINGS:
            raise self.bad(f"it claims an array of {count} strings")
        buffer, pos, last = self.buffer, self.pos, self.size - 8
        unpack = _U64.unpack_from
        for _ in range(count):
            if pos > last:
                break
            pos += 8 + unpack(buffer, pos)[0]
        else:
            if pos <= self.size:
                self.pos = pos
                return
        raise self.bad("it ends in the middle of an array of strings")

    def value(self, entry: _Entry) -> Any:
        """Decodes a value that `entry` walked over. Bytes that are no UTF-8 become U+FFFD."""
        raw = self.buffer[entry.start : entry.end]
        if entry.count is None:
            if entry.kind == _STRING:
                return raw.decode(errors="replace")
            number = np.frombuffer(raw, _SCALARS[entry.kind])[0].item()
            return bool(number) if entry.kind == _BOOL else number
        if entry.kind == _STRING:
            return _decode_strings(raw, entry.count)
        if entry.kind == _ARRAY:
            return self.nested(entry)
        return np.frombuffer(raw, _SCALARS[entry.kind]).astype(bool if entry.kind == _BOOL else _SCALARS[entry.kind])

    def nested(self, entry: _Entry) -> list[Any]:
        assert entry.count is not None
        kept, self.pos = self.pos, entry.start
        inner = [self.entry(_ARRAY, depth=0) for _ in range(entry.count)]
        self.pos = kept
        return [self.value(e) for e in inner]

    # --- tensors --------------------------------------------------------------------------------------------------------------
    def tensors(self, count: int, alignment: Any) -> dict[str, GGUFTensor]:
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise self.bad(f"general.alignment is {shown(alignment)}, and must be a power of two")
        infos = [self.tensor_info() for _ in range(count)]
        base = -(-self.pos // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise self.bad(f"the tensor {name!r} occurs twice")
            if offset % alignment:
                raise self.bad(f"the offset of tensor {name!r} is not a multiple of {alignment}")
            tensors[name] = self.view(name, shape, kind, base + offset)
        return tensors

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dims = self.name(), self.u32()
        if not 1 <= num_dims <= MAX_DIMS:
            raise self.bad(f"tensor {name!r} has {num_dims} dimensions, and 1 to {MAX_DIMS} are possible")
        sizes = [self.u64() for _ in range(num_dims)]
        if 0 in sizes:
            raise self.bad(f"tensor {name!r} is empty")
        return name, tuple(reversed(sizes)), self.u32(), self.u64()

    def view(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> GGUFTensor:
        if kind not in BLOCK_TYPES:
            known = ", ".join(f.upper() for f, _, _ in BLOCK_TYPES.values())
            type_name = UNREAD_TYPES.get(kind, f"unknown type {kind}")
            raise ModelError(f"{self.path}: tensor {name!r} is of {type_name}; get a file made of {known}")
        format_name, block_len, block_bytes = BLOCK_TYPES[kind]
        if shape[-1] % block_len:
            raise self.bad(f"tensor {name!r} has rows of {shape[-1]} values in blocks of {block_len}")
        rows, row_bytes = 1, shape[-1] // block_len * block_bytes
        for size in shape[:-1]:
            rows *= size
        if start + rows * row_bytes > self.size:
            raise ModelError(
                f"{self.path} is truncated: tensor {name!r} should end at byte {start + rows * row_bytes}, and the file has "
                f"{self.size}; download it again"
            )
        dtype = {"f32": "<f4", "f16": "<u2", "bf16": "<u2"}.get(format_name, "u1")
        flat = np.frombuffer(self.buffer, dtype, rows * row_bytes // np.dtype(dtype).itemsize, start)
        return GGUFTensor(name, format_name, shape, flat.reshape((rows, row_bytes) if dtype == "u1" else shape))


def _decode_strings(raw: bytes, count: int) -> list[str]:
    """`count` strings, each after its length.

    Almost always every length is below 256 and no string holds a zero byte: then the seven zeros of each length are the only
    ones, and splitting at them is much faster than walking.
    """
    gap = bytes(7)
    if count and raw.count(b"\0") == len(gap) * count:
        pieces = raw.split(gap)
        if len(pieces) == count + 1:  # length | string, length | ... | string
            return [p[:-1].decode("utf-8", "replace") for p in pieces[1:-1]] + [pieces[-1].decode("utf-8", "replace")]
    strings, pos, unpack = [], 0, _U64.unpack_from
    for _ in range(count):
        start = pos + 8
        pos = start + unpack(raw, pos)[0]
        strings.append(raw[start:pos].decode(errors="replace"))
    return strings
