"""Reads safetensors checkpoints, in one file or sharded, as views of mapped files (source: the safetensors format).

    length of the header u64 | header: JSON {name: {dtype, shape, data_offsets: [begin, end]}} | data

Pickled checkpoints (.bin, .pt) are refused: reading one runs whatever code is in it.
"""

from __future__ import annotations

import json
import math
import mmap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.files import check_regular, read_object, shown
from sglang.srt.errors import ModelError
from sglang.srt.model.quant.formats import HostTensor
from sglang.srt.model.weights.tensor_source import index_of

MAX_HEADER_BYTES = 32 << 20
"""a file of 60,000 experts has 10 MB"""
MAX_INDEX_BYTES = 64 << 20
MAX_DIMS = 8
MAX_DTYPE_LEN = 16
MAX_NAME_LEN = 1 << 12
RELEASE_BYTES = 16 << 20
"""how much of the files may lie in memory beside the weights made of it"""
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth")

_FORMATS = {"F32": ("f32", "<f4"), "F16": ("f16", "<u2"), "BF16": ("bf16", "<u2")}
_RAW = {"F8_E4M3": "u1", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8"}
"""types that parts of quantized matrices have"""
_DTYPES = {name: dtype for name, (_, dtype) in _FORMATS.items()} | _RAW


@dataclass(frozen=True)
class _Entry:
    """The place of a tensor in its file's data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsSource:
    """The tensors of a folder. Opening reads headers only; a file's data is touched when a tensor is read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._files: dict[str, SafetensorsFile] = {}  # tensor name -> file
        self._num_read = 0
        for path, names in _shards(folder):
            file = SafetensorsFile(path)
            for name in file.entries if names is None else names:
                if name not in file.entries:
                    raise ModelError(f"{path} lacks the tensor {name!r} that {INDEX_NAME} promises: download it again")
                if name in self._files:
                    raise ModelError(f"{path} and {self._files[name].path.name} both hold {name!r}: keep one of the two files")
                self._files[name] = file

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[name].entries[name].shape

    def format(self, name: str) -> str:
        dtype = self._files[name].entries[name].dtype
        return _FORMATS[dtype][0] if dtype in _FORMATS else dtype

    def where(self, name: str) -> Path:
        return self._files[name].path

    def read(self, name: str) -> HostTensor:
        self._release(name)
        return self._files[name].read(name)

    def read_index(self, name: str, index: int) -> HostTensor:
        return index_of(self.read(name), index)

    def _release(self, name: str) -> None:
        """Gives back the memory of what was read, now and then; it is read again when it is looked at again."""
        entry = self._files[name].entries[name]
        self._num_read += entry.end - entry.begin
        if self._num_read > RELEASE_BYTES:
            for file in set(self._files.values()):
                file.release()
            self._num_read = 0

    def read_raw(self, name: str) -> npt.NDArray[Any]:
        """A tensor of one of the types that parts of quantized matrices have (F8_E4M3 as bytes)."""
        self._release(name)
        return self._files[name].read_raw(name)


class SafetensorsFile:
    """One safetensors file, mapped, or its bytes if they are given."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        self.path = path
        self._buffer = self._mapped(path) if data is None else data
        self._data_start = 0
        self.entries = self._read_header()

    @staticmethod
    def _mapped(path: Path) -> mmap.mmap:
        try:
            check_regular(path)
            with open(path, "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # mmap's word for an empty file
            raise ModelError(f"{path} is empty: download it again") from error
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror}") from error

    def release(self) -> None:
        if isinstance(self._buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._buffer.madvise(mmap.MADV_DONTNEED)

    def _bad(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is not a usable safetensors file: {what}; download it again")

    def _read_header(self) -> dict[str, _Entry]:
        size = len(self._buffer)
        header_len = int.from_bytes(self._buffer[:8], "little")
        if size < 8 or header_len > size - 8:
            raise self._bad(f"its header should have {header_len} bytes, and the file has {size}")
        if header_len > MAX_HEADER_BYTES:
            raise self._bad(f"its header of {header_len} bytes is longer than any real one")
        self._data_start = 8 + header_len
        try:
            header = json.loads(self._buffer[8 : self._data_start], object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise self._bad(f"its header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._bad("its header is not a JSON object")
        entries = {name: self._entry(name, raw) for name, raw in header.items() if name != "__metadata__"}
        self._check_overlap(entries)
        return entries

    def _check_overlap(self, entries: dict[str, _Entry]) -> None:
        taken, before = 0, ""
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin < taken and entry.begin < entry.end:
                raise self._bad(f"the tensors {before!r} and {name!r} overlap")
            taken, before = max(taken, entry.end), name

    def _entry(self, name: str, raw: Any) -> _Entry:
        if not isinstance(raw, dict):
            raise self._bad(f"the entry of {name!r} is not an object")
        if len(name) > MAX_NAME_LEN:
            raise self._bad(f"it has a tensor whose name is {len(name)} characters long")
        dtype, shape, span = raw.get("dtype"), _counts(raw.get("shape")), _counts(raw.get("data_offsets"))
        if not isinstance(dtype, str) or len(dtype) > MAX_DTYPE_LEN or shape is None or span is None or len(span) != 2:
            raise self._bad(f"the entry of {name!r} lacks a proper dtype, shape or data_offsets")
        begin, end = span
        num_bytes = len(self._buffer) - self._data_start
        if begin > end:
            raise self._bad(f"the tensor {name!r} ends before it begins")
        if end > num_bytes:
            raise ModelError(
                f"{self.path} is truncated: tensor {name!r} should end at byte {self._data_start + end}, and the file has "
                f"{len(self._buffer)}; download it again"
            )
        if dtype in _DTYPES and math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != end - begin:
            raise self._bad(f"the tensor {name!r} of shape {list(shape)} in {dtype} cannot take {end - begin} bytes")
        return _Entry(dtype, shape, begin, end)

    def read(self, name: str) -> HostTensor:
        entry = self.entries[name]
        if entry.dtype not in _FORMATS:
            raise ModelError(
                f"{self.path}: tensor {name!r} is of type {entry.dtype}, and only F32, F16 and BF16 are read; "
                "use the model's unquantized checkpoint or a .gguf file"
            )
        return HostTensor(name, _FORMATS[entry.dtype][0], entry.shape, self._array(entry))

    def read_raw(self, name: str) -> npt.NDArray[Any]:
        entry = self.entries[name]
        if entry.dtype not in _RAW:
            raise ModelError(f"{self.path}: tensor {name!r} is of type {entry.dtype}, and should be {', '.join(_RAW)}")
        return self._array(entry)

    def _array(self, entry: _Entry) -> npt.NDArray[Any]:
        dtype, count = _DTYPES[entry.dtype], math.prod(entry.shape)
        data: npt.NDArray[Any] = np.frombuffer(self._buffer, dtype, count, self._data_start + entry.begin)
        if not data.flags.aligned:  # the format asks for aligned headers, old writers did not care
            data = data.copy()
        return data.reshape(entry.shape)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of whose names occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(name)} occurs twice")
    return found


def _counts(value: Any) -> tuple[int, ...] | None:
    """A list of counts, or None if it is anything else."""
    if isinstance(value, list) and len(value) <= MAX_DIMS and all(type(v) is int and v >= 0 for v in value):
        return tuple(value)
    return None


def _shards(folder: Path) -> list[tuple[Path, list[str] | None]]:
    """The files to read and, where an index says so, which tensors of each."""
    index = folder / INDEX_NAME
    if index.exists():
        return _indexed(index)
    single = folder / SINGLE_NAME
    if single.exists():
        return [(single, None)]
    paths = sorted(folder.glob("*.safetensors"))
    if paths:
        return [(path, None) for path in paths]
    if any(next(folder.glob(pattern), None) for pattern in PICKLED):
        raise ModelError(
            f"{folder} holds pickled weights only, which can run code when read: convert them to safetensors "
            "(save_pretrained in transformers does) or use a .gguf file"
        )
    raise ModelError(f"{folder} has no .safetensors file: copy or download the weights there (or use --load-format dummy)")


def _indexed(index: Path) -> list[tuple[Path, list[str] | None]]:
    weight_map = read_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} is damaged (no weight_map of names to files): download it again")
    shards: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors") or "\0" in file:
            raise ModelError(f"{index} names the file {shown(file)}, which is not a .safetensors file in the same folder")
        shards.setdefault(file, []).append(name)
    missing = [file for file in shards if not (index.parent / file).exists()]
    if missing:
        raise ModelError(f"{index.parent} lacks {len(missing)} of {len(shards)} shards, first {missing[0]}: download it again")
    return [(index.parent / file, names) for file, names in shards.items()]
