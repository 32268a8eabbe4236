"""Disks that are full, read only or gone under --state-dir and --batch-dir: clients are told, nothing else breaks, and all goes on when
there is room again. What a disk would do is done by SQLite itself (max_page_count, query_only) and by what opens files."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from sglang.common import database as database_module
from sglang.srt.errors import OverloadError
from sglang.srt.server.openai.batches.batch_store import BatchStore
from sglang.srt.server.openai.responses.response_disk import DiskResponses, SharedResponses
from tests.server.test_batches import CHAT, MakeSite, line, quick, site  # noqa: F401  # fixtures
from tests.server.test_response_disk import response

Break = Callable[[Any, bool], None]


def fill(store: Any, is_broken: bool) -> None:
    """SQLITE_FULL, as where the disk has no page left."""
    (pages,) = store._database.execute("pragma page_count").fetchone()
    store._database.execute(f"pragma max_page_count={pages if is_broken else 1 << 30}")


def lock(store: Any, is_broken: bool) -> None:
    """SQLITE_READONLY."""
    store._database.execute(f"pragma query_only={int(is_broken)}")


BROKEN = pytest.mark.parametrize("break_disk", [fill, lock])


@BROKEN
async def test_responses_that_find_no_room_are_written_later(tmp_path: Path, break_disk: Break) -> None:
    here, there = SharedResponses(tmp_path), SharedResponses(tmp_path)
    here.put("k", [], response("r0"))
    await here.settled()
    await here._disk.do(break_disk, True)
    previous = "r0"
    for i in range(1, 20):
        here.put("k", [], response(f"r{i}", previous, "long " * 2000))
        previous = f"r{i}"
    await here.settled()
    await here.fetch(previous, "k")
    assert len(here.chain(previous, "k")) == 20, "memory has them"
    if break_disk is fill:
        await here.forget("r1", "k")  # which is in memory alone: that takes no room
        assert here.peek("r1", "k") is None
    else:
        with pytest.raises(OverloadError, match="the folder of stored responses cannot be used now"):
            await here.forget("r0", "k")
        assert here.peek("r0", "k") is not None
    await here._disk.do(break_disk, False)
    here.put("k", [], response("last", previous))
    for _ in range(1000):
        await here.settled()
        if not here._only_here:
            break
        await asyncio.sleep(0.01)
    await there.fetch("last", "k")
    kept = [name for i in range(2, 20) if there.peek(name := f"r{i}", "k") is not None]
    assert len(kept) == 18 and there.get("last", "k").previous == "r19"
    await there.forget("r19", "k")
    await here.fetch("last", "k")
    assert here.peek("r19", "k") is None
    here.close()
    there.close()


async def test_a_commit_that_fails_leaves_no_transaction_open(tmp_path: Path) -> None:
    """Whatever fails, the next one begins anew."""
    store = DiskResponses(tmp_path / "a.sqlite3")
    fill(store, True)
    for i in range(30):
        with pytest.raises(database_module.sqlite3.OperationalError), database_module.changing(store._database):
            store._database.execute("insert into responses(owner, id, items) values ('k', ?, ?)", (str(i), bytes(100_000)))
        assert not store._database.in_transaction
    fill(store, False)
    with database_module.changing(store._database):
        store._database.execute("insert into responses(owner, id, items) values ('k', 'x', ?)", (bytes(100_000),))
    store.close()


@BROKEN
async def test_a_batch_waits_for_the_disk_of_its_record(site: MakeSite, break_disk: Break) -> None:  # noqa: F811
    """Wherever it is when that happens; and others can be created again."""
    async with site() as here:
        client = here.openai()
        small = (await here.batch([line("a")])).input_file_id
        running = await here.batch([line(str(i), f"a {i}") for i in range(20)], until=False)
        for _ in range(2):
            await here.runner.store.do(break_disk, True)
            with pytest.raises(openai.InternalServerError, match="the folder of files and batches cannot be used now"):
                for _ in range(40):  # the last page may have room for some
                    await client.batches.create(
                        input_file_id=small,
                        endpoint=CHAT,
                        completion_window="24h",
                        metadata=dict.fromkeys("abcdefg", "x" * 500),
                    )
            with pytest.raises(openai.InternalServerError, match="the folder of files and batches cannot be used now"):
                for _ in range(100):
                    await client.files.create(file=("b" * 200, b"x"), purpose="batch")
            await asyncio.sleep(0.3)
            await here.runner.store.do(break_disk, False)
            batch = await here.batch([line("a"), line("b")])
            assert batch.status == "completed" and batch.request_counts.completed == 2
        names = [one.id for one in (await client.batches.list(limit=100)).data]
        ended = {name: await here.ended(name) for name in names}
        assert {one.status for one in ended.values()} == {"completed"} and ended[running.id].request_counts.completed == 20
        left = {path.name for path in here.runner.files.folder.glob("files/*")}
        assert left == await here.runner.store.do(BatchStore.file_names), "what has no record is removed"
        assert not list(here.runner.files.folder.glob("uploads/*"))
        assert here.runner.files.on_their_way.total() == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
async def test_a_batch_waits_for_the_disk_of_its_files(
    site: MakeSite,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    really, failures = os.open, iter(range(6))

    def no_room(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(folder)) and next(failures, None) is not None:
            raise OSError(number, os.strerror(number), str(path))
        return really(path, flags, *more)

    async with site() as here:
        folder = here.runner.files.folder
        first = await here.batch([line("a")])
        monkeypatch.setattr(os, "open", no_room)
        with pytest.raises(openai.InternalServerError, match=os.strerror(number)) as caught:
            await here.openai().files.create(file=("b", b"x"), purpose="batch")
        assert str(folder) not in str(caught.value)
        batch = await here.openai().batches.create(input_file_id=first.input_file_id, endpoint=CHAT, completion_window="24h")
        assert (await here.ended(batch.id)).status == "completed" and next(failures, None) is None


async def test_a_folder_that_is_gone(site: MakeSite, tmp_path: Path) -> None:  # noqa: F811
    async with site() as here:
        client = here.openai()
        first = await here.batch([line("a")])
        folders = [here.runner.files.folder / name for name in ("files", "uploads", "work")]
        for folder in folders:
            folder.rename(folder.with_name(f"{folder.name}-away"))
        with pytest.raises(openai.InternalServerError, match="the folder of files and batches cannot be used now"):
            await client.files.create(file=("b", b"x"), purpose="batch")
        with pytest.raises(openai.NotFoundError, match="not there any more"):
            await client.files.content(first.input_file_id)
        made = await client.batches.create(input_file_id=first.input_file_id, endpoint=CHAT, completion_window="24h")
        failed = await here.ended(made.id)
        assert failed.status == "failed" and "No such file" in str(failed.errors) and str(tmp_path) not in str(failed.errors)
        for folder in folders:
            folder.with_name(f"{folder.name}-away").rename(folder)
        assert (await here.batch([line("a"), line("b")])).status == "completed"
