"""The GGUF reader: against the gguf package's writer and reader, and against damaged files of every kind."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.checkpoint.gguf_reader import GGUFFile, is_gguf
from sglang.srt.errors import ModelError

gguf = pytest.importorskip("gguf")

TOKENS = ["a", "", "é" * 90, "zero\0inside", "▁word", "x" * 300] + [f"t{i}" for i in range(500)]


def write(path: Path) -> Path:
    """A file with every kind of value and of tensor."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("text", "naïve ▁")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -5)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -300)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -7)
    writer.add_uint64("u64", 1 << 60)
    writer.add_int64("i64", -(1 << 60))
    writer.add_float32("f32", 0.25)
    writer.add_float64("f64", 1e-300)
    writer.add_bool("yes", True)
    writer.add_array("tokens", TOKENS)
    writer.add_array("plain", [f"p{i}" for i in range(300)])
    writer.add_array("types", list(range(-5, 500)))
    writer.add_array("scores", [0.5, -1.5])
    writer.add_array("flags", [True, False, True])
    writer.add_array("nested", [[1, 2], [3, 4]])
    writer.add_tensor("norm", rng.standard_normal(24).astype(np.float32))
    writer.add_tensor("half", rng.standard_normal((3, 8)).astype(np.float16))
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (4, 2 * block_bytes if block_len > 1 else 32), dtype=np.uint8)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "sample.gguf")


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def test_metadata_equals_the_oracle(sample: Path) -> None:
    ours, theirs = GGUFFile(sample).metadata, gguf.GGUFReader(str(sample))
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(ours) == names and len(ours) == len(names)
    for name in names:
        if name == "nested":
            assert [plain(inner) for inner in ours[name]] == [[1, 2], [3, 4]]  # the oracle flattens these
        else:
            assert plain(ours[name]) == theirs.fields[name].contents(), name
    assert ours["tokens"] == TOKENS
    assert ours["yes"] is True and ours["text"] == "naïve ▁"
    assert ours["types"].dtype == np.int32 and ours["flags"].dtype == bool
    assert "tokens" in ours and "absent" not in ours and ours.get("absent", 3) == 3


def test_tensors_equal_the_oracle(sample: Path) -> None:
    ours, theirs = GGUFFile(sample).tensors, gguf.GGUFReader(str(sample)).tensors
    assert list(ours) == [t.name for t in theirs]
    for tensor in theirs:
        mine = ours[tensor.name]
        assert mine.format == tensor.tensor_type.name.lower()
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert not mine.data.flags.writeable
        assert mine.data.tobytes() == tensor.data.tobytes()
    assert ours["half"].data.dtype == np.uint16 and ours["half"].data.shape == (3, 8)
    assert ours["norm"].data.dtype == np.float32
    assert ours["Q4_K"].shape == (4, 512) and ours["Q4_K"].data.shape == (4, 288)


def test_bytes_that_are_no_utf8_do_not_stop_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for strings in ([b"\xff\xfe", b"ok"], [b"\xff\0\xfe", b"ok"]):  # both ways of decoding
        array = struct.pack("<IIQ", 9, 8, 2) + b"".join(struct.pack("<Q", len(s)) + s for s in strings)
        path.write_bytes(header(0, 1) + key("bad") + array)
        decoded = GGUFFile(path).metadata["bad"]
        assert decoded == [s.decode(errors="replace") for s in strings]


def test_is_gguf(sample: Path, tmp_path: Path) -> None:
    assert is_gguf(sample)
    assert not is_gguf(tmp_path / "absent") and not is_gguf(Path(__file__)) and not is_gguf(tmp_path)


# --- damaged files ------------------------------------------------------------------------------------------------------------


def header(num_tensors: int, num_keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, num_tensors, num_keys)


def key(name: str) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode()


def tensor(name: str = "t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return key(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


NESTED = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6 + struct.pack("<IQ", 4, 0)

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "magic": (header(0, 0, magic=b"GGML"), "is not a GGUF file"),
    "short": (b"GGUF\x03", "ends in the middle of its header"),
    "version 1": (header(0, 0, version=1), "version is 1"),
    "version 99": (header(0, 0, version=99), "version is 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensors": (header(1 << 62, 0), "claims 4611686018427387904 tensors"),
    "keys": (header(0, 1 << 40), "metadata keys"),
    "long key": (header(0, 1) + struct.pack("<Q", 1 << 63) + b"x" * 20, "a name in it claims"),
    "key not text": (header(0, 1) + struct.pack("<Q", 2) + b"\xff\xff" + struct.pack("<II", 4, 1), "not valid UTF-8"),
    "key twice": (header(0, 2) + (key("k") + struct.pack("<II", 4, 1)) * 2, "occurs twice"),
    "value type": (header(0, 1) + key("k") + struct.pack("<IQQ", 77, 1, 1), "unknown type 77"),
    "array type": (header(0, 1) + key("k") + struct.pack("<IIQ", 9, 99, 1), "unknown type 99"),
    "array count": (header(0, 1) + key("k") + struct.pack("<IIQ", 9, 4, 1 << 61), "middle of its header"),
    "string count": (header(0, 1) + key("k") + struct.pack("<IIQ", 9, 8, 1 << 61), "claims an array"),
    "string in array": (header(0, 1) + key("k") + struct.pack("<IIQQ", 9, 8, 2, 1 << 60) + b"x" * 8, "array of strings"),
    "nesting": (header(0, 1) + key("k") + NESTED, "nested deeper"),
    "nested count": (header(0, 1) + key("k") + struct.pack("<IIQ", 9, 9, 1 << 61), "claims an array"),
    "alignment": (header(0, 1) + key("general.alignment") + struct.pack("<II", 4, 24), "must be a power of two"),
    "alignment 0": (header(0, 1) + key("general.alignment") + struct.pack("<II", 4, 0), "must be a power of two"),
    "dimensions": (header(1, 0) + tensor(dims=(1,) * 5), "5 dimensions"),
    "no dimension": (header(1, 0) + tensor(dims=()) + bytes(9), "0 dimensions"),
    "zero size": (header(1, 0) + tensor(dims=(0, 4)), "is empty"),
    "huge": (header(1, 0) + tensor(dims=(1 << 40, 1 << 40)) + bytes(64), "truncated"),
    "overflow": (header(1, 0) + tensor(dims=(1 << 32, 1 << 32, 1 << 32)) + bytes(64), "truncated"),
    "offset": (header(1, 0) + tensor(offset=1 << 50) + bytes(256), "truncated"),
    "odd offset": (header(1, 0) + tensor(offset=7) + bytes(256), "not a multiple of 32"),
    "truncated data": (header(1, 0) + tensor(dims=(64,)) + bytes(64), "truncated"),
    "blocks": (header(1, 0) + tensor(dims=(33,), kind=8) + bytes(256), "rows of 33 values in blocks of 32"),
    "known type": (header(1, 0) + tensor(kind=15) + bytes(256), "is of Q8_K; get a file made of F32"),
    "unknown type": (header(1, 0) + tensor(kind=4) + bytes(256), "is of unknown type 4"),
    "tensor twice": (header(2, 0) + tensor() * 2 + bytes(512), "occurs twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_named(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read .*absent"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(ModelError, match="not a regular file"):
        GGUFFile(tmp_path)


def read_all(path: Path) -> None:
    file = GGUFFile(path)
    for name in file.metadata:
        file.metadata[name]
    for each in file.tensors.values():
        each.data.sum()


def test_every_truncation_is_an_error(sample: Path, tmp_path: Path) -> None:
    content = sample.read_bytes()
    path = tmp_path / "cut.gguf"
    size = len(content)
    cuts = {*range(0, 400), *range(400, size, 97), size - 1}
    for end in sorted(cuts):
        path.write_bytes(content[:end])
        with pytest.raises(ModelError):
            GGUFFile(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_read_or_refused(sample: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(sample.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content), 9000) - 8))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\0\x80"])))
        content[at : at + len(patch)] = patch
    path = tmp_path_factory.mktemp("fuzz") / "f.gguf"
    path.write_bytes(content)
    try:
        with np.errstate(all="ignore"):
            read_all(path)
    except ModelError as error:
        assert str(path) in str(error)
