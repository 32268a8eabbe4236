"""Embeddings of images on disk: what one process encoded another reads, to the bit, and nothing that is damaged, another's or in the way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.checkpoint import cache_folder
from sglang.srt.checkpoint.kept_images import KeptImages
from sglang.srt.errors import ConfigError
from sglang.srt.model.image_queue import EncodeQueue
from tests.model import test_image_queue
from tests.model.test_image_queue import Clock, SlowEncoder, item

clock = test_image_queue.clock
ROWS = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(folder: Path, fingerprint: str = "same", **more: Any) -> KeptImages:
    return KeptImages(folder, fingerprint, least_free=0, **{"limit": 1 << 20, **more})


def kept(folder: Path, digest: bytes = b"one", **more: Any) -> Any:
    """What another process finds."""
    images = opened(folder, **more)
    found = images.read(digest).result(10)
    assert images.close(10)
    return found


def write(folder: Path, digest: bytes = b"one", rows: Any = ROWS, **more: Any) -> KeptImages:
    images = opened(folder, **more)
    images.write(digest, rows)
    assert images.close(10)
    return images


def test_another_process_finds_the_same_bits(folder: Path) -> None:
    assert write(folder).num_written == 1
    assert (kept(folder) == ROWS).all() and kept(folder).flags.writeable
    assert kept(folder, b"two") is None and kept(folder, fingerprint="another") is None
    assert write(folder).num_written == 0, "it is there"
    (path,) = (folder / "images").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_any_flipped_byte_and_any_cut_is_a_miss_and_is_mended(folder: Path) -> None:
    write(folder)
    (path,) = (folder / "images").iterdir()
    data = path.read_bytes()
    images = opened(folder)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert images.read(b"one").result(10) is None, at
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        assert images.read(b"one").result(10) is None, end
    images.write(b"one", ROWS)
    assert (images.read(b"one").result(10) == ROWS).all()
    path.rename(path.with_name("0" * 40 + ".rows"))
    shutil.copy(path.with_name("0" * 40 + ".rows"), images._path(b"two"))
    assert images.read(b"two").result(10) is None, "it has another's name"
    images.close(10)


@pytest.mark.timeout(60)
def test_pipes_and_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    images = opened(folder)
    path = images._path(b"one")
    os.mkfifo(path)
    assert images.read(b"one").result(10) is None
    path.unlink()
    (tmp_path / "theirs").write_bytes(b"theirs")
    path.symlink_to(tmp_path / "theirs")
    assert images.read(b"one").result(10) is None
    images.close(10)
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_what_was_not_used_for_longest_makes_room(folder: Path) -> None:
    size = ROWS.nbytes + 20
    for i in range(6):
        write(folder, bytes([i]), limit=3 * size)
        for path in (folder / "images").iterdir():
            os.utime(path, (1000 + i, 1000 + i)) if path.stat().st_mtime > 2000 else None
    assert [kept(folder, bytes([i])) is not None for i in range(6)] == [False] * 3 + [True] * 3
    assert cache_folder.folder_bytes(folder) == 3 * size
    write(folder, b"large", np.zeros((1000, 8), np.float32), limit=3 * size)
    assert kept(folder, b"large") is None


def test_a_disk_that_fails_is_said_once_and_costs_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = opened(folder)
    shutil.rmtree(folder)
    for i in range(3):
        images.write(bytes([i]), ROWS)
    assert images.read(b"\0").result(10) is None
    images.close(10)
    assert len([line for line in caplog.messages if "--cache-dir" in line]) == 1
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="open to other users"):
        opened(folder)


# --- in the queue -----------------------------------------------------------------------------------------------------------------


def test_what_is_on_disk_is_not_encoded(folder: Path, clock: Clock) -> None:
    for num_encoded in (2, 0):
        encoder = SlowEncoder(clock, [0.001])
        queue = EncodeQueue(encoder, 1 << 20)
        queue.kept = opened(folder)
        jobs = [queue.get(item(i)) for i in (1, 2)]
        for job in jobs:
            assert job.reading is not None
            job.reading.result(10)
        while queue.run(0.0):
            pass
        assert [np.asarray(job.embedding).tolist() for job in jobs] == [[[i] * 4] * 2 for i in (1, 2)]
        assert (queue.num_encoded, encoder.done) == (num_encoded, num_encoded)
        assert queue.is_idle and queue.get(item(1)) is jobs[0]
        assert queue.kept.close(10)


def test_a_disk_that_hangs_is_not_waited_for(folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    queue = EncodeQueue(SlowEncoder(clock, [0.001]), 1 << 20)
    queue.kept = opened(folder)
    monkeypatch.setattr(queue.kept, "read", lambda digest: Future())
    job = queue.get(item(1))
    assert not queue.run(0.0) and not queue.is_idle
    clock.now += 2.0
    while queue.run(0.0):
        pass
    assert job.is_done and queue.num_encoded == 1
    queue.kept.close(10)


def test_rows_that_do_not_fit_the_image_are_not_taken(folder: Path, clock: Clock) -> None:
    write(folder, item(1).mm_hash, np.zeros((3, 4), np.float32))
    queue = EncodeQueue(SlowEncoder(clock, [0.001]), 1 << 20)
    queue.kept = opened(folder)
    job = queue.get(item(1))
    assert job.reading is not None
    job.reading.result(10)
    while queue.run(0.0):
        pass
    assert len(job.embedding) == 2 and queue.num_encoded == 1  # type: ignore[arg-type]
    queue.kept.close(10)
