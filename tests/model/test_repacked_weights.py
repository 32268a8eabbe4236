"""Packed weights on disk: the same bits at the next start, without reading matrices; damage, crowds, full disks."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint import cache_folder
from sglang.srt.checkpoint.gguf_reader import open_gguf
from sglang.srt.config import DeviceOptions, MemoryOptions, ModelOptions, WeightsCacheOptions
from sglang.srt.errors import ConfigError, ModelError
from sglang.srt.model import worker as worker_module
from sglang.srt.model.capacity import HostMemory
from sglang.srt.model.quant.formats import HostTensor
from sglang.srt.model.weights.repacked.session import PendingTensor
from sglang.srt.model.worker import create_worker
from sglang.srt.server_args import ServerArgs
from tests.model.tiny import Driver, save_model

torch = pytest.importorskip("torch")
store = pytest.importorskip("sglang.srt.model.weights.repacked.packed_store", exc_type=ImportError)
packed_file = pytest.importorskip("sglang.srt.model.weights.repacked.packed_file", exc_type=ImportError)

PROMPT = [int(i) for i in np.random.default_rng(4).integers(3, 99, 29)]
SMALL = MemoryOptions(max_total_tokens=512, max_running_requests=4, chunked_prefill_size=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "qwen3", vocab_size=320, hidden_size=64, intermediate_size=128, head_dim=16, num_hidden_layers=2)
    return folder


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture()
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("sglang").addHandler(handler)
    yield lines
    logging.getLogger("sglang").removeHandler(handler)


class Start:
    """One start of a model: its logits, how many tensors were read from its files, and what was warned of."""

    def __init__(self, model: Path, folder: Path | None, threads: int = 1, **options: Any) -> None:
        limit = options.pop("max_bytes", 1 << 30)
        is_mapped = options.pop("is_mapped", False)
        cache = WeightsCacheOptions(str(folder), limit, least_bytes=1, is_mapped=is_mapped) if folder is not None else None
        self.read: list[str] = []
        reads = worker_module.Checkpoint._read

        def read(checkpoint: Any, name: str) -> HostTensor:
            self.read.append(name)
            return reads(checkpoint, name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker_module.Checkpoint, "_read", read)
            asked = ModelOptions(str(model), weights_cache=cache, **options)
            self.worker = create_worker(asked, DeviceOptions(kernels="cpu", threads=threads), SMALL)
        for thread in threading.enumerate():
            if thread.name == "sglang-weights":
                thread.join(60)
        driver = Driver(self.worker)
        self.logits = driver.logits([(driver.add(PROMPT), len(PROMPT))])

    @property
    def matrices(self) -> list[str]:
        return [name for name in self.read if "norm" not in name and not name.endswith(".bias")]


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("weights/*"))


def same(a: Start, b: Start) -> bool:
    return np.array_equal(a.logits.view(np.int32), b.logits.view(np.int32))


# --- the next start -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_the_next_start_reads_no_matrix_and_computes_the_same_bits(model: Path, folder: Path, quantization: Any) -> None:
    plain = Start(model, None, quantization=quantization)
    first = Start(model, folder, quantization=quantization)
    assert first.matrices and same(plain, first)
    [path] = kept(folder)
    assert path.suffix == ".packed" and path.stat().st_mode & 0o777 == 0o600
    assert all(each.stat().st_mode & 0o777 == 0o700 for each in (path.parent, folder))
    again = Start(model, folder, threads=2, quantization=quantization)
    assert again.matrices == [] and same(plain, again)
    assert kept(folder) == [path]


def test_experts(tmp_path: Path, folder: Path) -> None:
    import transformers

    from tests.model.tiny import SIZES, randomize

    sizes = {**SIZES, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes)).float().eval()
    randomize(model)
    model.save_pretrained(tmp_path / "model")
    first, again = (Start(tmp_path / "model", folder) for _ in range(2))
    assert first.matrices and again.matrices == [] and same(first, again)


def test_columns_out_of_order(tmp_path: Path, folder: Path) -> None:
    """GPTQ with act-order: the tensor becomes another format than its header lets expect."""
    from tests.model.quantized import FORMS, save_quantized

    name = next(name for name in FORMS if "order" in name or "act" in name)
    save_quantized(tmp_path / "model", FORMS[name][0], FORMS[name][1])
    first, again = (Start(tmp_path / "model", folder) for _ in range(2))
    assert first.matrices and again.matrices == [] and same(first, again)


def test_other_options_have_files_of_their_own(model: Path, folder: Path) -> None:
    plain, int8 = Start(model, folder), Start(model, folder, quantization="int8")
    assert len(kept(folder)) == 2 and not same(plain, int8)
    assert Start(model, folder, random_seed=5).matrices == []
    assert Start(model, folder, dtype="bfloat16").matrices
    assert same(int8, Start(model, folder, quantization="int8"))


def test_a_changed_model_is_packed_anew_and_its_old_file_goes(model: Path, tmp_path: Path, folder: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(model, mine)
    before = Start(mine, folder)
    [old] = kept(folder)
    weights = mine / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-300:-100] = bytes(200)
    weights.write_bytes(data)
    after = Start(mine, folder)
    assert after.matrices and not same(before, after)
    [new] = kept(folder)
    assert new != old
    os.utime(weights, (1, 1))
    assert Start(mine, folder).matrices, "another time is another file"


def test_small_models_are_not_worth_a_file(model: Path, folder: Path) -> None:
    asked = ModelOptions(str(model), weights_cache=WeightsCacheOptions(str(folder)))
    create_worker(asked, DeviceOptions(kernels="cpu", threads=1), SMALL)
    assert kept(folder) == []


def test_the_reference_keeps_nothing(model: Path, folder: Path) -> None:
    asked = ModelOptions(str(model), weights_cache=WeightsCacheOptions(str(folder), least_bytes=1))
    create_worker(asked, DeviceOptions(kernels="reference"), SMALL)
    assert not folder.exists()


def test_embedders(model: Path, folder: Path) -> None:
    from sglang.srt.model.embedder import create_embedder

    asked = ModelOptions(str(model), is_embedding=True, weights_cache=WeightsCacheOptions(str(folder), 1 << 30, least_bytes=1))
    found = []
    for _ in range(2):
        found.append(create_embedder(asked, DeviceOptions(kernels="cpu", threads=1)).embed([PROMPT])[0])
        for thread in threading.enumerate():
            if thread.name == "sglang-weights":
                thread.join(60)
    assert len(kept(folder)) == 1
    assert np.array_equal(np.asarray(found[0]), np.asarray(found[1]))


# --- damage -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Start]:
    folder = tmp_path_factory.mktemp("written") / "kept"
    return folder, Start(model, folder)


def flips(path: Path) -> dict[str, int]:
    size = path.stat().st_size
    index = packed_file._FRONT.unpack(path.read_bytes()[: packed_file._FRONT.size])[1]
    places = {"magic": 3, "where the index is": 17, "its length": 25, "its checksum": 33, "index": index + 40, "end": size - 1}
    return places | {
        "first byte": packed_file.FRONT_BYTES,
        "middle": (packed_file.FRONT_BYTES + index) // 2,
        "last byte": index - 64,
    }


@pytest.mark.parametrize(
    "where", ["magic", "where the index is", "its length", "its checksum", "index", "end", "first byte", "middle"]
)
def test_a_flipped_bit_is_found(
    model: Path, folder: Path, written: tuple[Path, Start], where: str, warnings: list[str]
) -> None:
    source, first = written
    shutil.copytree(source, folder)
    [path] = kept(folder)
    good, at = path.read_bytes(), flips(path)[where]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([good[at] ^ 0x10]))
    again = Start(model, folder)
    assert again.matrices and same(first, again)
    assert len(warnings) == 1 and "packed anew" in warnings[0]
    assert path.read_bytes() == good
    assert Start(model, folder).matrices == []


@pytest.mark.parametrize("size", [0, 10, 4096, 5000, -1, 1 << 35])
def test_a_file_of_another_length_is_found(model: Path, folder: Path, written: tuple[Path, Start], size: int) -> None:
    source, first = written
    shutil.copytree(source, folder)
    [path] = kept(folder)
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    again = Start(model, folder)
    assert again.matrices and same(first, again)


def rewritten(path: Path, **changes: Any) -> None:
    """The file with another index, whose checksums are right: what only somebody who means it can do."""
    fd = os.open(path, os.O_RDWR)
    index = packed_file.read_index(fd)
    pieces = changes.pop("pieces", lambda pieces: pieces)(list(index.pieces))
    raw = packed_file.msgspec.json.encode(packed_file.msgspec.structs.replace(index, pieces=tuple(pieces), **changes))
    raw = changes.pop("raw", raw)
    _, start, _, _ = packed_file._FRONT.unpack(os.pread(fd, packed_file._FRONT.size, 0))
    os.pwrite(fd, raw, start)
    front = packed_file._FRONT.pack(packed_file.MAGIC, start, len(raw), packed_file.checksum(np.frombuffer(raw, np.uint8)))
    os.pwrite(fd, front, 0)
    os.close(fd)


HOSTILE = {
    "before the data": lambda pieces: [packed_file.msgspec.structs.replace(pieces[0], start=0), *pieces[1:]],
    "beyond the end": lambda pieces: [packed_file.msgspec.structs.replace(pieces[0], start=1 << 62), *pieces[1:]],
    "negative": lambda pieces: [packed_file.msgspec.structs.replace(pieces[0], num_bytes=-64), *pieces[1:]],
    "unaligned": lambda pieces: [packed_file.msgspec.structs.replace(pieces[0], start=pieces[0].start + 4), *pieces[1:]],
    "too small": lambda pieces: [shorter(pieces[0]), *pieces[1:]],
    "none": lambda pieces: [],
    "too few": lambda pieces: pieces[:-1],
    "in another order": lambda pieces: pieces[::-1],
    "of other things": lambda pieces: [packed_file.msgspec.structs.replace(p, what="x") for p in pieces],
}


def shorter(piece: Any) -> Any:
    nothing = packed_file.checksum(np.empty(0, np.uint8))
    return packed_file.msgspec.structs.replace(piece, num_bytes=0, checksum=nothing)


@pytest.mark.parametrize("how", HOSTILE)
def test_an_impossible_index_is_refused(model: Path, folder: Path, written: tuple[Path, Start], how: str) -> None:
    source, first = written
    shutil.copytree(source, folder)
    [path] = kept(folder)
    rewritten(path, pieces=HOSTILE[how])
    again = Start(model, folder)
    assert again.matrices and same(first, again)
    assert Start(model, folder).matrices == [], "it was written anew"


def test_a_file_of_another_model_is_refused(model: Path, folder: Path, written: tuple[Path, Start]) -> None:
    source, first = written
    shutil.copytree(source, folder)
    [path] = kept(folder)
    rewritten(path, key="0" * 32)
    assert same(first, Start(model, folder))


def _first(tensors: dict[str, Any], form: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {**tensors, next(name for name in tensors if "norm" not in name): (form, shape)}


TENSORS = {
    "of no size": lambda tensors: _first(tensors, "f32", ()),
    "of a huge size": lambda tensors: _first(tensors, "f32", (1 << 40, 1 << 40)),
    "negative": lambda tensors: _first(tensors, "f32", (-4, -4)),
    "of a format that there is not": lambda tensors: _first(tensors, "x" * 1000, (64, 64)),
    "of another's shape": lambda tensors: dict(zip(tensors, [*tensors.values()][::-1], strict=True)),
    "none": lambda tensors: {},
    "others": lambda tensors: {f"x.{name}": known for name, known in tensors.items()},
}


@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize("how", TENSORS)
def test_tensors_that_are_not_those_of_the_model(
    model: Path, folder: Path, written: tuple[Path, Start], how: str, is_mapped: bool
) -> None:
    """They cost the time of packing: neither an answer nor the start."""
    source, first = written
    shutil.copytree(source, folder)
    [path] = kept(folder)
    fd = os.open(path, os.O_RDONLY)
    rewritten(path, tensors=TENSORS[how](packed_file.read_index(fd).tensors))
    os.close(fd)
    assert same(first, Start(model, folder, is_mapped=is_mapped))


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo", "locked"])
def test_what_lies_where_a_file_is_to_be_written(
    model: Path, folder: Path, tmp_path: Path, written: tuple[Path, Start], kind: str
) -> None:
    source, first = written
    shutil.copytree(source, folder)
    [path] = kept(folder)
    path.unlink()
    new, precious = path.with_suffix(".new"), tmp_path / "precious"
    precious.write_bytes(b"mine")
    if kind == "symlink":
        new.symlink_to(precious)
    elif kind == "folder":
        new.mkdir()
    elif kind == "fifo":
        os.mkfifo(new)
    else:
        held = new.open("wb")
        store.fcntl.flock(held, store.fcntl.LOCK_EX)
    assert same(first, Start(model, folder))
    assert precious.read_bytes() == b"mine"


@pytest.mark.parametrize("about", [b"[" * 4000, b"[1]", b'{"place": {}, "weights": []}', b"\xff" * 4000, b"null"])
def test_what_a_file_says_of_itself_is_not_believed(
    model: Path, folder: Path, written: tuple[Path, Start], about: bytes
) -> None:
    """It decides only whether the file is stale: one that cannot be read goes when there is no room, and not before."""
    source, first = written
    shutil.copytree(source, folder)
    [path] = kept(folder)
    with path.open("r+b") as file:
        file.seek(cache_folder.ABOUT_AT)
        file.write(about)
    assert same(first, Start(model, folder, quantization=None)) and path.exists()


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo"])
def test_what_is_no_file(model: Path, folder: Path, tmp_path: Path, written: tuple[Path, Start], kind: str) -> None:
    source, first = written
    shutil.copytree(source, folder)
    [path] = kept(folder)
    if kind == "symlink":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    again = Start(model, folder)
    assert again.matrices and same(first, again)


def test_a_folder_that_others_write_to_is_not_used(
    model: Path, folder: Path, written: tuple[Path, Start], warnings: list[str]
) -> None:
    source, first = written
    shutil.copytree(source, folder)
    (folder / "weights").chmod(0o777)
    again = Start(model, folder)
    assert again.matrices and same(first, again)
    assert len(warnings) == 1 and "chmod 700" in warnings[0]


# --- disks --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str], error: int
) -> None:
    def pwrite(*_: Any) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(packed_file.os, "pwrite", pwrite)
    Start(model, folder)
    assert kept(folder) == []
    assert len(warnings) == 1 and os.strerror(error) in warnings[0] and "--weights-cache off" in warnings[0]


def test_a_folder_that_cannot_be_made(model: Path, tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").write_text("")
    Start(model, tmp_path / "file" / "below")
    assert len(warnings) == 1 and "are not kept" in warnings[0]


def test_the_limit_holds_for_all_that_is_kept(model: Path, folder: Path, warnings: list[str]) -> None:
    first = Start(model, folder)
    [path] = kept(folder)
    size = path.stat().st_size
    prefixes = folder / ("a" * 32)
    prefixes.mkdir()
    for suffix in ("idx", "kv"):
        (prefixes / f"00000001.{suffix}").write_bytes(bytes(size))
    os.utime(prefixes / "00000001.idx", (1, 1))
    assert cache_folder.folder_bytes(folder) == 3 * size
    del first  # a file that is used stays
    Start(model, folder, quantization="int8", max_bytes=2 * size)
    assert not (prefixes / "00000001.idx").exists(), "what was not used for longest goes first"
    assert len(kept(folder)) == 2 and warnings == []
    Start(model, folder, dtype="bfloat16", max_bytes=1000)
    assert len(kept(folder)) == 2 and len(warnings) == 1 and "--cache-disk" in warnings[0]


def test_what_is_mapped_is_not_deleted(model: Path, folder: Path) -> None:
    first = Start(model, folder)
    running = Start(model, folder, is_mapped=True)
    files = cache_folder.packed_files(folder)
    assert cache_folder.remove_unused(files) == 0 and len(kept(folder)) == 1
    copied = Start(model, folder)
    assert np.array_equal(running.logits, first.logits) and np.array_equal(copied.logits, first.logits)
    del running
    assert cache_folder.remove_unused(files) == files[0].num_bytes and kept(folder) == [], "a copy needs no file"


# --- several at once, and ends --------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from tests.model.test_repacked_weights import Start
start = Start(Path(sys.argv[1]), Path(sys.argv[2]))
print(start.logits.tobytes().hex()[:4096], len(start.matrices))
"""


def test_several_processes_at_once(model: Path, folder: Path) -> None:
    root = str(Path(__file__).parents[2])
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(model), str(folder), root], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = [process.communicate(timeout=300)[0].split() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert len({logits for logits, _ in found}) == 1
    assert [path.suffix for path in kept(folder)] == [".packed"]
    assert Start(model, folder).matrices == []


def test_one_that_another_was_faster_than_leaves_nothing(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Start(model, folder)
    monkeypatch.setattr(store.PackedStore, "_read", lambda self: None)  # as before the other was done
    assert Start(model, folder).matrices
    assert [path.suffix for path in kept(folder)] == [".packed"]


def test_an_end_in_the_middle_leaves_nothing_that_counts(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process had been killed: what it wrote lies there, unlocked."""
    write = packed_file.write_file

    def torn(*args: Any) -> Iterator[int]:
        for i, number in enumerate(write(*args)):
            if i == 5:
                raise KeyboardInterrupt
            yield number

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_file", torn)
        patch.setattr(store.Path, "unlink", lambda *_, **__: None)
        patch.setattr(threading, "excepthook", lambda *_: None)
        first = Start(model, folder)
    [left] = kept(folder)
    assert left.suffix == ".new" and left.stat().st_size
    again = Start(model, folder)
    assert again.matrices and same(first, again)
    assert [path.suffix for path in kept(folder)] == [".packed"]
    left.write_bytes(b"of a process that was killed")
    assert cache_folder.remove_unused(cache_folder.packed_files(folder)) > 0
    assert left not in kept(folder)


# --- parts --------------------------------------------------------------------------------------------------------------------


def test_the_checksum_sees_everything() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 63, 64, 65, 640, 1000):
        data = rng.integers(0, 256, size, dtype=np.uint8)
        seen = {packed_file.checksum(data), packed_file.checksum(np.append(data, np.uint8(0)))}
        for i in range(size):
            for bit in (1, 128):
                data[i] ^= bit
                seen.add(packed_file.checksum(data))
                data[i] ^= bit
        assert len(seen) == 2 + 2 * size
        if size >= 128:  # the same flips in two words of a chain, and two words that changed places
            other = data.copy()
            other[[7, 71]] ^= 128
            swapped = data.copy()
            swapped[:8], swapped[64:72] = data[64:72], data[:8]
            assert len({packed_file.checksum(each) for each in (data, other, swapped)}) == 3


def test_a_pending_tensor_is_read_once_and_only_if_needed() -> None:
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    reads = []

    def read() -> HostTensor:
        reads.append(1)
        return HostTensor("x", "f32", (8, 8), values)

    tensor = PendingTensor.of("x", "f32", (8, 8), read)
    assert tensor.is_dense and tensor.shape == (8, 8) and not reads
    assert np.array_equal(tensor.slice_rows(2, 4).dequantize(), values[2:4])
    assert np.array_equal(replace(tensor, name="y").slice_columns(1, 3).data, values[:, 1:3])
    assert tensor.scale is None and tensor.order is None and len(reads) == 1


def test_memory_that_is_mapped_counts_once(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four copies need the weights once: what is left after them is divided."""
    Start(model, folder)
    size = kept(folder)[0].stat().st_size
    seen: list[HostMemory] = []
    check = worker_module.check_needs

    def noted(name: str, checkpoint: Any, ops: Any, options: Any, memory: HostMemory, *rest: Any) -> None:
        seen.append(memory)
        check(name, checkpoint, ops, options, memory, *rest)

    monkeypatch.setattr("sglang.srt.model.capacity.host_memory", lambda reserved=0: HostMemory(1 << 40, (1 << 36) - reserved))
    monkeypatch.setattr(worker_module, "check_needs", noted)
    cache = WeightsCacheOptions(str(folder), 1 << 30, least_bytes=1)
    for options in (None, cache):
        asked = ModelOptions(str(model), weights_cache=options)
        create_worker(asked, DeviceOptions(kernels="cpu", threads=1), replace(SMALL, copies=4))
    plain, mapped = (memory.available for memory in seen)
    assert plain == 1 << 34
    assert 0.7 * size < mapped - plain < 0.76 * size


def test_a_header_is_read_once(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"

    def write(name: str) -> None:
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name(name)
        writer.add_tensor("x", np.ones((2, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write("one")
    first = open_gguf(path)
    assert open_gguf(path) is first and first.metadata["general.name"] == "one"
    path.unlink()
    with pytest.raises(ModelError, match="cannot read"):
        open_gguf(path)
    write("two")
    assert open_gguf(path).metadata["general.name"] == "two"


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ({}, "/home/cache/sglang-anywhere"),
        ({"cache_dir": "/prefixes"}, "/prefixes"),
        ({"cache_dir": "/prefixes", "weights_cache": "/weights"}, "/weights"),
        ({"weights_cache": "off"}, None),
        ({"weights_cache": "off", "cache_dir": "/prefixes"}, None),
    ],
    ids=["default", "with prefixes", "its own", "off", "off with prefixes"],
)
def test_the_flag(flags: dict[str, Any], folder: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/cache")
    found = (
        ServerArgs(device="cpu", cache_disk=1 << 30, **flags).resolve()
        if folder
        else ServerArgs(device="cpu", **flags).resolve()
    )
    assert (found.model.weights_cache and found.model.weights_cache.folder) == folder
    assert folder is None or found.model.weights_cache.max_bytes == 1 << 30  # type: ignore[union-attr]


def test_wrong_folders() -> None:
    for folder in ("", "a\0b"):
        with pytest.raises(ConfigError, match="--weights-cache needs the name of a folder, or off"):
            ServerArgs(device="cpu", weights_cache=folder).resolve()
    with pytest.raises(ConfigError, match="kept for a CPU"):
        ServerArgs(device="cuda", weights_cache="/weights").resolve()
