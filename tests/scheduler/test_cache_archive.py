"""Prefixes as one file: what one server knew, another knows that never saw it, to the bit; and no file does harm."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.commands.arguments import CommandError
from sglang.commands.downloads import cache
from sglang.srt.errors import ConfigError
from sglang.srt.scheduler.cache.disk import archive
from sglang.srt.scheduler.cache.disk.archive import export_records, fingerprint_folders, import_records
from sglang.srt.scheduler.cache.disk.store import DiskRoom
from tests.scheduler.disk_server import ROOM, Server, ask, fill, ids, leave

PROMPT = ids(200, 1)


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    """A cache that knows a prompt."""
    fill(tmp_path / "warm", PROMPT)
    return tmp_path / "warm"


@pytest.fixture
def shipped(warm: Path, tmp_path: Path) -> Path:
    (source,) = fingerprint_folders(warm, None)
    export_records(source, tmp_path / "file")
    return tmp_path / "file"


def test_what_one_knew_another_knows(shipped: Path, tmp_path: Path) -> None:
    found = import_records(shipped, tmp_path / "other", ROOM)
    assert found.num_new == found.head.num_records >= 12 and found.head.about["model"] == "toy"
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o700 and shipped.stat().st_mode & 0o777 == 0o600
    server = Server(tmp_path / "other")
    assert server.cached(ask(PROMPT)) >= 192  # and the answer is the oracle's
    server.stop()
    again = import_records(shipped, tmp_path / "other", ROOM)
    assert (again.num_new, again.num_known) == (0, found.num_new)


def test_another_fingerprint_and_salt_never_match(shipped: Path, tmp_path: Path) -> None:
    import_records(shipped, tmp_path / "other", ROOM)
    server = Server(tmp_path / "other", fingerprint="another")
    assert server.cached(ask(PROMPT)) == 0
    server.stop()
    server = Server(tmp_path / "other")
    assert server.cached(ask(PROMPT, cache_salt="x")) == 0
    server.stop()


def test_prompts_are_shipped_up_to_their_first_image(tmp_path: Path) -> None:
    server = Server(tmp_path / "warm")
    server.tier.names.image_of = lambda tree_id: (b"x" * 32, tree_id + 60, -tree_id - 1)
    leave(server, np.array([*ids(40, 3), *range(-60, 0), *ids(60, 4)], np.int32), None)
    server.ask(ask(PROMPT))
    server.stop()
    (source,) = fingerprint_folders(tmp_path / "warm", None)
    found = export_records(source, tmp_path / "file")
    num_kept = len(Server(tmp_path / "warm").tier.store)
    assert num_kept - found.num_records == 8, "of ten records two stand before the image"
    assert import_records(tmp_path / "file", tmp_path / "other", ROOM).num_new == found.num_records


def test_beside_a_running_server(warm: Path, shipped: Path, tmp_path: Path) -> None:
    """It can be read from, and not be written to."""
    server = Server(warm)
    (source,) = fingerprint_folders(warm, "toy")
    assert export_records(source, tmp_path / "second").num_records >= 12
    with pytest.raises(ConfigError, match="a server writes"):
        import_records(shipped, warm, ROOM)
    server.stop()


def test_any_changed_byte_is_found(shipped: Path, tmp_path: Path) -> None:
    whole, rng = shipped.read_bytes(), random.Random(2)
    start = len(archive.MAGIC) + 4 + archive.HEAD_BYTES
    places = [0, 17, len(archive.MAGIC) + 6, start, start + 40, start + 90, len(whole) - 1]
    for i, at in enumerate([*places, *(rng.randrange(len(whole)) for _ in range(40))]):
        bad = bytearray(whole)
        bad[at] ^= 1 << rng.randrange(8)
        shipped.write_bytes(bad)
        with pytest.raises(ConfigError):
            import_records(shipped, tmp_path / f"to{i}", ROOM)
        assert not list((tmp_path / f"to{i}").glob("*/*.kv")), "nothing was kept of it"


def test_cut_off_and_longer_files(shipped: Path, tmp_path: Path) -> None:
    whole = shipped.read_bytes()
    for data in (b"", whole[:10], whole[:1000], whole[:-1], whole[: len(whole) // 2], whole + b"x", b"PK\3\4" + whole):
        shipped.write_bytes(data)
        with pytest.raises(ConfigError):
            import_records(shipped, tmp_path / "to", ROOM)


def forged(shipped: Path, **changes: Any) -> None:
    """The archive with another head and a right checksum, as a hostile author can make one."""
    import hashlib
    import json

    data, start = shipped.read_bytes(), len(archive.MAGIC) + 4
    head = {**json.loads(data[start : start + archive.HEAD_BYTES]), **changes}
    text = json.dumps(head).encode().ljust(archive.HEAD_BYTES)
    records = data[start + archive.HEAD_BYTES : -archive.DIGEST_BYTES]
    digest = hashlib.blake2b(records + text, digest_size=archive.DIGEST_BYTES).digest()
    shipped.write_bytes(data[:start] + text + records + digest)


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "../../../../etc/x"},
        {"fingerprint": "00" * 31},
        {"fingerprint": 5},
        {"records": 1 << 40},
        {"records": -1},
        {"records": True},
        {"records": 1.5},
        {"payload_bytes": 1 << 50},
        {"payload_bytes": 0},
        {"run": 0},
        {"run": 1 << 30},
        {"run": "16"},
        {"version": 2},
        {"version": None},
        {"version": "x" * 1000},
    ],
    ids=str,
)
def test_hostile_heads(shipped: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    forged(shipped, **changes)
    with pytest.raises(ConfigError):
        import_records(shipped, tmp_path / "to", ROOM)
    assert not (tmp_path / "to").exists()


def test_about_is_text_of_bounded_length(shipped: Path, tmp_path: Path) -> None:
    forged(shipped, about={"model": "m" * 50_000, "kernels": {"a": 1}, "../x": "y", "layout": "l"})
    about = import_records(shipped, tmp_path / "to", ROOM).head.about
    assert about.keys() == {"model", "layout"} and len(about["model"]) == archive.MOST_TEXT


def test_a_record_under_the_name_of_other_tokens(shipped: Path, tmp_path: Path) -> None:
    """All its checksums are right."""
    import hashlib

    data = bytearray(shipped.read_bytes())
    start = len(archive.MAGIC) + 4 + archive.HEAD_BYTES
    with shipped.open("rb") as file:
        head, text = archive.read_head(file, "")
    size = head.form.entry_bytes
    data[start + 64] ^= 1  # the first token
    data[start + size - 4 : start + size] = struct.pack("<I", zlib.crc32(data[start : start + size - 4]))
    data[-archive.DIGEST_BYTES :] = hashlib.blake2b(data[start : -archive.DIGEST_BYTES] + text, digest_size=32).digest()
    shipped.write_bytes(data)
    with pytest.raises(ConfigError, match="not that of its tokens"):
        import_records(shipped, tmp_path / "to", ROOM)


def test_it_takes_no_more_room_than_there_is(warm: Path, shipped: Path, tmp_path: Path) -> None:
    fill(tmp_path / "to", ids(300, 9), fingerprint="another")
    before = sorted(path.name for path in (tmp_path / "to").glob("*/*.kv"))
    with pytest.raises(ConfigError, match="do not fit"):
        import_records(shipped, tmp_path / "to", DiskRoom(8 << 10, least_free=0))
    with pytest.raises(ConfigError, match="do not fit"):
        import_records(shipped, tmp_path / "to", DiskRoom(1 << 20, least_free=1 << 60))
    assert sorted(path.name for path in (tmp_path / "to").glob("*/*.kv")) == before


def test_the_command(warm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = tmp_path / "warm.prefixes", tmp_path / "other"
    assert cache(["export", str(warm), str(file), "--model", "toy"]) == 0
    assert cache(["import", str(other), str(file), "--cache-disk", "1MiB"]) == 0
    assert "of toy" in capsys.readouterr().out
    for argv, words in (
        (["export", str(warm), str(file)], "exists already"),
        (["export", str(warm), str(tmp_path / "x"), "--model", "nobody"], "no prefixes of nobody"),
        (["export", str(tmp_path / "empty"), str(tmp_path / "x")], "not a folder"),
        (["import", str(other), str(tmp_path / "missing")], "No such file"),
        (["import", str(other), str(warm)], "Is a directory"),
        (["import", str(file), str(file)], "open to other|Not a directory|File exists"),
    ):
        with pytest.raises(CommandError, match=words):
            cache(argv)
    fill(warm, PROMPT, fingerprint="another")
    with pytest.raises(CommandError, match="2 models"):
        cache(["export", str(warm), str(tmp_path / "x")])
