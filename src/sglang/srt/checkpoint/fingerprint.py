"""Whether two processes compute the same bits: they do if their fingerprints are equal.

    weights     names, shapes and types of all tensors, their bytes or samples of these, and the config beside them
    options     what changes numbers: data types, quantization, overrides of the config, ranks
    kernels     the kernel set that was chosen, e.g. "cpu avx512_vnni"
    code        the files that compute: those of `sglang.srt.model`, and the library of the kernels

It errs on one side only: equal bits may have different fingerprints (another compiler built the library, a comment changed).
How many threads compute, and what else runs, changes no bit and is no part of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from sglang.srt.checkpoint.files import check_regular
from sglang.srt.checkpoint.gguf_parts import part_names
from sglang.srt.config import DeviceOptions, ModelFiles, ModelOptions
from sglang.srt.errors import ModelError

WHOLE_BYTES = 1 << 30
"""weights up to this size are read whole; of larger ones, besides the headers, SAMPLE bytes of every STRIDE"""
STRIDE, SAMPLE = 128 << 10, 4 << 10
HEADER_BYTES = 8 << 20
"""the beginning of a file, where its names, shapes and offsets stand, and its end are read whole"""
PIECE = 1 << 20
CONFIGS = ("config.json", "quantize_config.json", "model.safetensors.index.json")
"""files of a folder that say how its tensors are read"""


def fingerprint(model: ModelOptions, files: ModelFiles, device: DeviceOptions, kernels: str, code: str) -> str:
    """Hexadecimal digest of all that decides which bits a model computes. `files`: where the model lies; `kernels`:
    ModelInfo.kernels; `code`: `code_digest`. Raises ModelError if the weights cannot be read."""
    is_dummy = model.load_format == "dummy"
    facts = {
        "weights": weights_digest(files, with_data=not is_dummy),
        "dummy_seed": model.random_seed if is_dummy else None,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "mm_quantization": model.mm_quantization,
        "context_length": model.context_length,
        "overrides": model.json_model_override_args,
        "embeds": model.is_embedding,
        "kernels": kernels,
        "kv_cache_dtype": device.kv_cache_dtype,
        "deterministic": device.deterministic,
        "tp_size": device.tp_size,
        "code": code,
    }
    return hashlib.blake2b(msgspec.json.encode(facts, order="deterministic"), digest_size=32).hexdigest()


def weights_digest(files: ModelFiles, with_data: bool = True) -> str:
    """Digest of a model's files: the configs, and with `with_data` the weights. Raises ModelError if one cannot be read."""
    configs, weights = _files_of(files)
    hasher = _Hasher()
    try:
        for path in configs:
            hasher.add_file(path, whole=True)
        sizes = [check_regular(path) for path in weights] if with_data else []
        for path in weights if with_data else ():
            hasher.add_file(path, whole=sum(sizes) <= WHOLE_BYTES)
    except OSError as error:
        raise ModelError(f"cannot read {error.filename or files.path}: {error.strerror}") from error
    return hasher.hex()


def weights_stamp(files: ModelFiles) -> str:
    """Digest of where a model's files are, how large, of when, and how they begin: without reading the weights. The configs count
    with all their bytes. Raises OSError."""
    configs, weights = _files_of(files)
    hasher = _Hasher()
    for path in configs:
        hasher.add_file(path, whole=True)
    for path in weights:
        hasher.add_beginning(path.resolve())
    return hasher.hex()


def _files_of(files: ModelFiles) -> tuple[list[Path], list[Path]]:
    """A model's configs and its weights."""
    if files.kind == "gguf":
        more = [] if files.projector is None else [files.projector]
        return [], [*(files.path.with_name(name) for name in part_names(files.path.name)), *more]
    return [path for name in CONFIGS if (path := files.path / name).exists()], sorted(files.path.glob("*.safetensors"))


def code_files() -> Iterator[Path]:
    """All that computes: the model's wing, and the native kernels where they are installed."""
    yield from (Path(__file__).parents[1] / "model").rglob("*.py")
    kernels = importlib.util.find_spec("sglang_anywhere_kernels")
    if kernels is not None and kernels.submodule_search_locations:
        for folder in kernels.submodule_search_locations:
            yield from Path(folder).glob("_cpu*.so")


def code_digest(paths: Iterable[Path]) -> str:
    """Digest of program files and libraries: of their names and all of their bytes."""
    hasher = _Hasher()
    for path in sorted(paths):
        hasher.add_file(path, whole=True)
    return hasher.hex()


class _Hasher:
    """Files with their names and lengths, so that nothing moves from one to the next."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)

    def hex(self) -> str:
        return self._hash.hexdigest()

    def add_beginning(self, path: Path) -> None:
        """Raises OSError."""
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            self._hash.update(os.fsencode(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0"))
            self._hash.update(os.pread(file.fileno(), HEADER_BYTES, 0))

    def add_file(self, path: Path, whole: bool) -> None:
        """Raises OSError."""
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            self._hash.update(f"{path.name}\0{size}\0".encode())
            for start, length in _spans(size, whole):
                self._hash.update(os.pread(file.fileno(), length, start))


def _spans(size: int, whole: bool) -> Iterable[tuple[int, int]]:
    """Which parts of a file are read, as (start, length)."""
    if whole or size <= 2 * HEADER_BYTES:
        return ((start, PIECE) for start in range(0, size, PIECE))
    head = [(start, PIECE) for start in range(0, HEADER_BYTES, PIECE)]
    middle = [(start, SAMPLE) for start in range(HEADER_BYTES, size - PIECE, STRIDE)]
    return [*head, *middle, (size - PIECE, PIECE)]
