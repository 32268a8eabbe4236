"""/v1/files and /v1/batches in this process: shapes, owners, limits, ends; what clients do to them that is not meant."""

from __future__ import annotations

import asyncio
import errno
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from sglang.common.batch_lines import seed_of
from sglang.srt.config import BACKGROUND, OF_BATCHES, BatchOptions, HttpOptions
from sglang.srt.errors import ConfigError, RequestError
from sglang.srt.server.http.app import create_app
from sglang.srt.server.openai.batches import batch_job, batch_routes, batch_runner, stored_files
from sglang.srt.server.openai.batches.batch_input import body_of, read_input
from sglang.srt.server.openai.batches.batch_job import Answers
from sglang.srt.server.openai.batches.batch_runner import BatchRunner
from sglang.srt.server.openai.batches.multipart_body import MAX_HEAD, MultipartParser, Part, boundary_of
from sglang.srt.server.openai.batches.row_calls import RowCalls
from tests.server.conftest import MakeStand, Stand

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (batch_job, batch_runner):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(batch_job, "FULL_SECONDS", 0.05)


def line(name: str, words: str = "a b", **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 4, **body}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body}


def written(lines: list[Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in lines).encode()


class Site:
    """An application with batches, and clients of it."""

    def __init__(self, stand: Stand, folder: Path, **options: Any) -> None:
        self.stand = stand
        self.runner = BatchRunner(BatchOptions(str(folder), **options))
        self.app = create_app(stand.manager, stand.options, {}, self.runner)
        self.task = asyncio.ensure_future(self.runner.run())

    def http(self, key: str = "one") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers, timeout=30)

    def openai(self, key: str = "one") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key=key, http_client=self.http(key), max_retries=0)

    async def batch(self, lines: list[Any] | bytes, key: str = "one", until: bool = True, **more: Any) -> Any:
        client = self.openai(key)
        data = lines if isinstance(lines, bytes) else written(lines)
        file = await client.files.create(file=("in.jsonl", data), purpose="batch")
        more = {"endpoint": CHAT, "completion_window": "24h", **more}
        batch = await client.batches.create(input_file_id=file.id, **more)
        return await self.ended(batch.id, key) if until else batch

    async def ended(self, name: str, key: str = "one", wanted: tuple[str, ...] = ENDED) -> Any:
        client = self.openai(key)
        for _ in range(1000):
            batch = await client.batches.retrieve(name)
            if batch.status in wanted:
                return batch
            await asyncio.sleep(0.01)
        raise AssertionError(batch)

    async def rows(self, file: str | None, key: str = "one") -> list[Any]:
        text = (await self.openai(key).files.content(file)).text if file is not None else ""
        return [json.loads(one) for one in text.splitlines()]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.runner.close()


async def nothing() -> None:
    """Instead of a scheduler's steps."""


MakeSite = Callable[..., Any]


@pytest.fixture
def site(make_stand: MakeStand, tmp_path: Path) -> MakeSite:
    @asynccontextmanager
    async def make(
        folder: str = "b", per_step: int = 1, keys: tuple[str, ...] = ("one", "two"), **options: Any
    ) -> AsyncIterator[Site]:
        made = Site(make_stand(per_step or 1, api_keys=keys), tmp_path / folder, **options)
        if not per_step:
            made.stand.scheduler._run = nothing  # type: ignore[method-assign]
        try:
            yield made
        finally:
            await made.stop()
            assert made.stand.manager.num_in_flight == 0

    return make


# --- what clients see -------------------------------------------------------------------------------------------------------------


async def test_a_batch_from_its_file_to_its_answers(site: MakeSite) -> None:
    async with site() as here:
        lines = [line("z"), line("a", temperature=-1), line("m", "c d e")]
        batch = await here.batch(lines, metadata={"run": "7"})
        assert batch.status == "completed" and batch.metadata == {"run": "7"} and batch.errors is None
        assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
        assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at
        good, bad = await here.rows(batch.output_file_id), await here.rows(batch.error_file_id)
        assert [row["custom_id"] for row in good] == ["z", "m"] and [row["custom_id"] for row in bad] == ["a"]
        assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in good)
        assert good[0]["response"]["body"]["object"] == "chat.completion" and good[0]["response"]["request_id"]
        assert bad[0]["response"]["status_code"] == 400 and "temperature" in bad[0]["response"]["body"]["error"]["message"]
        assert not list(here.runner.files.folder.glob("work/*")) and not list(here.runner.files.folder.glob("uploads/*"))
        assert here.runner.files.on_their_way.total() == 0


async def test_rows_are_below_all_others_and_have_seeds_of_their_names(site: MakeSite) -> None:
    async with site() as here:
        await here.batch([line("a", seed=5), line("b"), line("c", seed=None, temperature=1.0)])
        sent = {tuple(req.input_ids): req for req in here.stand.scheduler.received if hasattr(req, "priority")}
        assert sent and all(req.priority == BACKGROUND and req.client[0] == OF_BATCHES for req in sent.values())
        assert {req.sampling.seed for req in here.stand.scheduler.received if hasattr(req, "sampling")} == {
            5,
            seed_of("b"),
            seed_of("c"),
        }


async def test_lists_go_page_by_page(site: MakeSite) -> None:
    async with site() as here:
        client = here.openai()
        made = [await client.files.create(file=(f"{i}.jsonl", b"{}"), purpose="batch") for i in range(5)]
        names = [file.id async for file in client.files.list(limit=2, order="asc")]
        assert names == [file.id for file in made]
        assert [file.id async for file in client.files.list(limit=2)] == names[::-1]
        batches = [await here.batch([line("a")]) for _ in range(3)]
        assert [batch.id async for batch in client.batches.list(limit=1)] == [batch.id for batch in batches[::-1]]
        shown = (await here.http().get("/v1/files", params={"purpose": "batch_output", "limit": "1"})).json()
        assert shown["has_more"] and shown["data"][0]["purpose"] == "batch_output" and shown["first_id"] == shown["last_id"]
        for query in (
            "limit=0",
            "limit=x",
            "limit=٣",
            "order=up",
            "after=nothing",
            "after=" + "9" * 5000,
            "limit=" + "9" * 5000,
        ):
            assert (await here.http().get(f"/v1/files?{query}")).status_code == 400, query


async def test_another_keys_names_do_not_exist(site: MakeSite) -> None:
    async with site() as here:
        batch = await here.batch([line("a")])
        other = here.http("two")
        for path in (
            f"/v1/files/{batch.input_file_id}",
            f"/v1/files/{batch.output_file_id}/content",
            f"/v1/batches/{batch.id}",
        ):
            reply = await other.get(path)
            assert reply.status_code == 404 and "no " in reply.json()["error"]["message"], path
            assert (await here.http().get(path)).status_code == 200
        assert (await other.delete(f"/v1/files/{batch.input_file_id}")).status_code == 404
        assert (await other.post(f"/v1/batches/{batch.id}/cancel")).status_code == 404
        assert (await other.get(f"/v1/batches?after={batch.id}")).status_code == 400
        body = {"input_file_id": batch.input_file_id, "endpoint": CHAT, "completion_window": "24h"}
        assert (await other.post("/v1/batches", json=body)).status_code == 404
        assert (await other.get("/v1/files")).json()["data"] == [] == (await other.get("/v1/batches")).json()["data"]
        assert (await here.http("wrong").get("/v1/files")).status_code == 401


async def test_files_are_deleted_unless_a_batch_reads_them(site: MakeSite) -> None:
    async with site(per_step=0) as here:  # nothing is ever answered
        batch = await here.batch([line("a")], until=False)
        reply = await here.http().delete(f"/v1/files/{batch.input_file_id}")
        assert reply.status_code == 400 and batch.id in reply.json()["error"]["message"]
        await here.openai().batches.cancel(batch.id)
        await here.ended(batch.id)
        gone = await here.openai().files.delete(batch.input_file_id)
        assert gone.deleted and (await here.http().get(f"/v1/files/{batch.input_file_id}")).status_code == 404
        assert not here.runner.files.path(batch.input_file_id).exists()


# --- ends -------------------------------------------------------------------------------------------------------------------------


async def test_what_is_wrong_with_an_input_is_told_by_line(site: MakeSite) -> None:
    wrong = [line("a"), line("a"), [], line("b", stream=True), line("c") | {"url": "/v1/completions"}, line("d") | {"x": 1}]
    async with site() as here:
        batch = await here.batch(written(wrong) + b"{\xff\n" + b'{"custom_id": "\\ud800"\n')
        assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
        told = [(error.line, error.code) for error in batch.errors.data]
        assert told == [
            *[(2, "duplicate_custom_id"), (3, "invalid_json_line"), (4, "invalid_body"), (5, "mismatched_url")],
            *[(6, "unknown_field"), (7, "invalid_json_line"), (8, "invalid_json_line")],
        ]
        for data, code in ((b"", "empty_file"), (b"\n\n", "empty_file"), (b"[" * 100_000, "invalid_json_line")):
            batch = await here.batch(data)
            assert batch.errors.data[0].code == code


async def test_cancelled_in_the_middle(site: MakeSite) -> None:
    async with site(per_step=0, window=2) as here:
        batch = await here.batch([line(f"r{i}") for i in range(5)], until=False)
        await here.ended(batch.id, wanted=("in_progress",))
        said = await here.openai().batches.cancel(batch.id)
        assert said.status in ("cancelling", "cancelled") and said.cancelling_at
        batch = await here.ended(batch.id)
        assert batch.status == "cancelled" and batch.cancelling_at <= batch.cancelled_at
        rows = await here.rows(batch.error_file_id)
        assert [row["custom_id"] for row in rows] == [f"r{i}" for i in range(5)]
        assert all(row["error"]["code"] == "batch_cancelled" and row["response"] is None for row in rows)
        again = await here.http().post(f"/v1/batches/{batch.id}/cancel")
        assert again.status_code == 400 and "is cancelled" in again.json()["error"]["message"]


async def test_its_time_is_over(site: MakeSite) -> None:
    async with site(per_step=0) as here:
        batch = await here.batch([line("a")], completion_window="1s")
        assert batch.status == "expired" and batch.expired_at >= batch.expires_at
        assert (await here.rows(batch.error_file_id))[0]["error"]["code"] == "batch_expired"


@pytest.mark.parametrize("cut", range(5))
async def test_a_server_that_ends_in_the_middle_is_followed_by_the_same_answers(site: MakeSite, cut: int) -> None:
    lines = [line(f"r{i}", f"a b {i}", temperature=1.0) for i in range(6)] + [line("wrong", temperature=-1)]

    def essence(rows: list[Any]) -> list[Any]:
        return [(r["id"], r["custom_id"], r["response"]["status_code"], r["response"]["body"].get("choices")) for r in rows]

    async with site() as here:
        whole = await here.batch(lines)
        expected = [(row["custom_id"], row["response"]["body"]["choices"]) for row in await here.rows(whole.output_file_id)]
    async with site("cut", per_step=0, window=2) as here:
        batch = await here.batch(lines, until=False)
        await here.ended(batch.id, wanted=("in_progress",))
        work = here.runner.files.work(batch.id)
    async with site("cut") as here:  # as if some had been written, and the last one in part
        batch = await here.ended(batch.id)
        rows = await here.rows(batch.output_file_id)
        assert [(row["custom_id"], row["response"]["body"]["choices"]) for row in rows] == expected
        first = essence(rows)
        record = await here.runner.store.do(lambda store: store.batch(batch.id, batch_owner(here)))
        record.status, record.output_file_id, record.error_file_id = "in_progress", None, None
        answers = Answers(work)
        answers.open()
        for number, row in enumerate(rows[:cut], 1):
            answers.add(number, True, json.dumps(row).encode())
        answers.close()
        with work.open("ab") as file:
            file.write(b'6 + {"id": "half of a li')
        await here.runner.store.do(lambda store: store.move(record, "in_progress"))
        batch = await here.ended(batch.id)
        assert batch.request_counts.model_dump() == {"total": 7, "completed": 6, "failed": 1}
        assert essence(await here.rows(batch.output_file_id)) == first


def batch_owner(here: Site) -> str:
    found = here.stand.manager.keys.identify([(b"authorization", b"Bearer one")])
    assert found is not None
    return found.client


# --- clients that mean no good ----------------------------------------------------------------------------------------------------


async def test_names_are_never_paths(site: MakeSite) -> None:
    async with site() as here:
        for name in ("../../etc/passwd", "/etc/passwd", "..\\..\\x", "a/b\x00c.jsonl", "x" * 5000, "\r\nX: 1", "", ".."):
            boundary = b"--q\r\nContent-Disposition: form-data; name="
            quoted = name.replace("\r", "%0D").replace("\n", "%0A").encode()
            body = (
                boundary
                + b'"purpose"\r\n\r\nbatch\r\n'
                + boundary
                + b'"file"; filename="'
                + quoted
                + b'"\r\n\r\n{}\r\n--q--\r\n'
            )
            reply = await here.http().post(
                "/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=q"}
            )
            assert reply.status_code == 200, (name, reply.text)
            file = reply.json()
            assert "/" not in file["filename"] and 0 < len(file["filename"]) <= 255 and file["filename"].isprintable()
            got = await here.http().get(f"/v1/files/{file['id']}/content")
            assert got.content == b"{}" and "attachment" in got.headers["content-disposition"]
        inside = {path.relative_to(here.runner.files.folder).parts[0] for path in here.runner.files.folder.rglob("*")}
        assert inside == {
            "files",
            "uploads",
            "work",
            "runner.lock",
            "batches.sqlite3",
            "batches.sqlite3-wal",
            "batches.sqlite3-shm",
        }
        for name in (
            "..",
            "../x",
            "%2e%2e%2fbatches.sqlite3",
            "..%2f..%2fetc%2fpasswd",
            "a%00b",
            "x" * 3000,
            "'; drop table files;--",
        ):
            for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/batches/{name}"):
                assert (await here.http().get(path)).status_code in (404, 405), path


async def test_sizes_have_limits(site: MakeSite) -> None:
    async with site(max_file_bytes=100_000, max_bytes=250_000, max_requests=10, max_line_bytes=2000) as here:
        client = here.openai()
        with pytest.raises(openai.BadRequestError, match="longer than 100000 bytes"):
            await client.files.create(file=("a", b"x" * 100_001), purpose="batch")
        with pytest.raises(openai.APIStatusError) as large:
            await client.files.create(file=("a", b"x" * 300_000), purpose="batch")
        assert large.value.status_code == 413
        await client.files.create(file=("a", b"x" * 90_000), purpose="batch")
        with pytest.raises(openai.InternalServerError, match="delete some"):  # the other keys find room, too
            await client.files.create(file=("a", b"x" * 90_000), purpose="batch")
        await here.openai("two").files.create(file=("a", b"x" * 70_000), purpose="batch")
    async with site("other", max_requests=10, max_line_bytes=2000) as here:
        for data, code in (
            (b"{}\n" * 11, "too_many_requests"),
            (b"\n" * 50_000, "too_many_requests"),
            (written([line(f"r{i}") for i in range(11)]), "too_many_requests"),
            (written([line("a", "x" * 3000)]), "line_too_long"),
        ):
            assert (await here.batch(data)).errors.data[-1].code == code
        assert not list(here.runner.files.folder.glob("uploads/*")) and here.runner.files.on_their_way.total() == 0


async def test_an_owner_has_a_number_of_files(site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_files, "MAX_FILES", 2)
    async with site() as here:
        mine = here.openai().files
        first, _ = [await mine.create(file=("a", b"x"), purpose="batch") for _ in range(2)]
        with pytest.raises(openai.BadRequestError, match="2 files are stored already: delete some"):
            await mine.create(file=("a", b"x"), purpose="batch")
        await here.openai("two").files.create(file=("a", b"x"), purpose="batch")
        await mine.delete(first.id)
        await mine.create(file=("a", b"x"), purpose="batch")


async def test_a_file_of_ten_million_lines_is_read_no_further_than_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "in"
    row = written([line("a")])
    path.write_bytes(row + b" \n" * 10_000_000 + row)
    began = time.process_time()
    items, errors = await asyncio.to_thread(read_input, path, CHAT, 1000, 1 << 20)
    assert not items and errors[0].code == "too_many_requests"
    assert time.process_time() - began < 1.0


def expires(seconds: str) -> bytes:
    head = '--q\r\nContent-Disposition: form-data; name="expires_after[{}]"\r\n\r\n{}\r\n'
    return (head.format("anchor", "created_at") + head.format("seconds", seconds)).encode()


async def test_bodies_that_are_no_uploads(site: MakeSite) -> None:
    head = b'--q\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    file = b'--q\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n'
    async with site() as here:
        for body, words in (
            (b"", "ends before"),
            (head + file, "ends before"),
            (head + b"--q--", "file is missing"),
            (file + b"--q--", "purpose is missing"),
            (head + head + file + b"--q--", "there twice"),
            (head.replace(b"batch", b"fine-tune") + file + b"--q--", "purpose 'fine-tune'"),
            (head + file.replace(b'; filename="a"', b"") + b"--q--", "needs a filename"),
            (head.replace(b'"purpose"', b'"priority"') + file + b"--q--", "unknown field 'priority'"),
            (b"--q\r\nContent-Type: text/plain\r\n\r\nx\r\n--q--", "no name"),
            (b"--q\r\n" + b"X: y\r\n" * MAX_HEAD, "too long"),
            (head.replace(b"batch", b"b" * 5000) + file + b"--q--", "longer than"),
            *(
                (head + file + expires(number) + b"--q--", "seconds must be an integer")
                for number in (
                    "\u00b2\u00b2\u00b2\u00b2",
                    "\u0664\u0665\u0666\u0667",
                    "9" * 4000,
                    "4000.0",
                    "-4000",
                    " ",
                    "\0",
                    "1e4",
                )
            ),
            (b"nothing of the kind, and long enough to be sure", "does not begin"),
        ):
            reply = await here.http().post(
                "/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=q"}
            )
            assert reply.status_code == 400 and words in reply.json()["error"]["message"], (words, reply.text)
        for kind in (
            "application/json",
            "multipart/form-data",
            f"multipart/form-data; boundary={'q' * 99}",
            "text/plain; boundary=q",
        ):
            reply = await here.http().post("/v1/files", content=file, headers={"Content-Type": kind})
            assert reply.status_code in (400, 415), kind
        page = {"Content-Type": "multipart/form-data; boundary=q", "Origin": "http://evil.example"}
        assert (await here.http().post("/v1/files", content=head + file + b"--q--", headers=page)).status_code == 403
        assert not list(here.runner.files.folder.glob("uploads/*"))


async def test_batches_that_are_none(site: MakeSite) -> None:
    async with site() as here:
        file = await here.openai().files.create(file=("a", b"{}"), purpose="batch")
        right = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        for change, words in (
            ({"endpoint": "/generate"}, "endpoint must be"),
            ({"endpoint": None}, "endpoint is missing"),
            ({"completion_window": "1w"}, "completion_window must be"),
            ({"completion_window": "99999999d"}, "completion_window must be"),
            ({"completion_window": 24}, "must be a string"),
            ({"metadata": {"a": 1}}, "metadata"),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
            ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "seconds"),
            ({"output_expires_after": {"anchor": "never", "seconds": 9999}}, "anchor"),
            ({"output_expires_after": {"anchor": "created_at", "second": 9999}}, "second"),
            ({"priority": 3}, "unknown field"),
        ):
            reply = await here.http().post("/v1/batches", json=right | change)
            assert reply.status_code == 400 and words in reply.json()["error"]["message"], (change, reply.text)
        for name in ("file-000000000000000000000000", "../x", file.id + "/"):
            assert (await here.http().post("/v1/batches", json=right | {"input_file_id": name})).status_code == 404


async def test_a_full_disk_is_waited_for(site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    add, left = Answers.add, iter(range(3))

    def full(self: Answers, number: int, is_good: bool, row: bytes) -> int:
        if next(left, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, number, is_good, row)

    monkeypatch.setattr(Answers, "add", full)
    async with site() as here:
        batch = await here.batch([line("a"), line("b")])
        assert batch.status == "completed" and batch.request_counts.completed == 2

        class Full:
            def write(self, data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            def close(self) -> None: ...

        monkeypatch.setattr(stored_files.os, "fdopen", lambda *_: Full())
        with pytest.raises(openai.InternalServerError, match="No space left"):
            await here.openai().files.create(file=("a", b"x"), purpose="batch")
        assert here.runner.files.on_their_way.total() == 0


async def test_an_answer_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "work")
    answers.open()
    answers.add(1, True, b"one")

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: memoryview) -> int:
            self.file.write(data[:3])
            raise OSError(errno.ENOSPC, "full")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    whole, answers._file = answers._file, Half(answers._file)  # type: ignore[assignment]
    with pytest.raises(OSError):
        answers.add(2, True, b"two")
    answers._file = whole
    answers.add(3, False, b"three")
    assert (answers.read(1), answers.read(3)) == (b"one\n", b"three\n") and answers.lines == {1: True, 3: False}
    answers.close()
    again = Answers(tmp_path / "work")
    again.open()
    assert again.lines == {1: True, 3: False} and again.read(3) == b"three\n"
    again.close()


async def test_a_batch_whose_key_is_gone_waits(site: MakeSite) -> None:
    async with site("k", per_step=0) as here:
        batch = await here.batch([line("a")], key="two", until=False)
    async with site("k", keys=("one", "three")) as here:
        await asyncio.sleep(0.3)
        assert not [m for m in here.stand.scheduler.received if hasattr(m, "sampling")]
    async with site("k") as here:
        assert (await here.ended(batch.id, "two")).status == "completed"


async def test_one_process_runs_them_and_others_serve(site: MakeSite) -> None:
    async with site("k") as first, site("k", per_step=0) as second:
        await asyncio.sleep(0.1)
        batch = await second.batch([line("a")], until=False)
        assert (await second.ended(batch.id)).status == "completed"
        assert not [m for m in second.stand.scheduler.received if hasattr(m, "sampling")]
        assert (await first.rows((await first.ended(batch.id)).output_file_id))[0]["custom_id"] == "a"


# --- pieces -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_an_upload_is_the_same_however_it_is_cut(size: int) -> None:
    content = b"\r\n--q\r\n-- \r\n--\r\n--qq--x\r\n\r\n--"[:-2] + bytes(range(256)) * 3
    content = content.replace(b"\r\n--B", b"")
    body = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a;\\"b"\r\n\r\n' + content + b"\r\n--B--\r\nrest"
    parser, parts, got = MultipartParser(b"B"), [], b""
    for at in range(0, len(body), size):
        for found in parser.feed(body[at : at + size]):
            if isinstance(found, Part):
                parts.append(found)
            else:
                got += found
    assert parser.is_complete and got == content and [part.name for part in parts] == ["file"]


@pytest.mark.parametrize("more", ['; boundary="x' + ";" * 60_000, ";" * 60_000, '; boundary="' + '\\";' * 20_000], ids=range(3))
def test_long_headers_take_no_time(more: str) -> None:
    began = time.thread_time()
    with pytest.raises(RequestError):
        boundary_of("multipart/form-data" + more)
    head = f'form-data; name="file"; filename="{more}'.encode()[: MAX_HEAD - 50]
    with pytest.raises(RequestError):
        list(MultipartParser(b"x").feed(b"--x\r\nContent-Disposition: " + head + b"\r\n\r\n\r\n--x--"))
    assert time.thread_time() - began < 0.05


def test_boundaries() -> None:
    assert boundary_of('multipart/form-data; boundary="a b"') == b"a b"
    with pytest.raises(RequestError):
        boundary_of("multipart/form-data; boundary=")
    with pytest.raises(RequestError):
        boundary_of("multipart/form-data; boundary*=utf-8''%E2%82%AC")


@pytest.mark.parametrize(
    ("body", "seed"),
    [
        ("{}", seed_of("n")),
        (' { "a": "seed" } ', seed_of("n")),
        ('{"seed": null}', seed_of("n")),
        ('{"seed": 4}', 4),
        ('{"a": {"seed": 3}}', seed_of("n")),
        ('{"seed": null, "b": [1, {"seed": 2}]}', seed_of("n")),
    ],
    ids=range(6),
)
def test_seeds_are_added_where_there_is_none(body: str, seed: int) -> None:
    raw = f'{{"custom_id": "n", "method": "POST", "url": "{CHAT}", "body": {body}}}\n'.encode()
    made = json.loads(body_of(raw, CHAT, "n"))
    assert made["seed"] == seed and {**made, "seed": 0} == {**json.loads(body), "seed": 0}
    assert json.loads(body_of(raw, "/v1/embeddings", "n")) == json.loads(body)


async def test_an_application_that_breaks_off_is_no_answer() -> None:
    async def app(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with pytest.raises(Exception, match="ended before"):
        await RowCalls(app).send("", "/", b"{}")


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o755)
    for path, words in ((tmp_path / "file" / "x", "cannot be used"), (open_folder, "other users")):
        with pytest.raises(ConfigError, match=words):
            BatchRunner(BatchOptions(str(path)))
    runner = BatchRunner(BatchOptions(str(tmp_path / "good")))
    runner.close()
    (tmp_path / "good" / "batches.sqlite3").write_bytes(b"not a database, whatever it says" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        BatchRunner(BatchOptions(str(tmp_path / "good")))


async def test_without_a_folder_the_way_out_is_told(make_stand: MakeStand) -> None:
    stand = make_stand()
    transport = httpx.ASGITransport(app=create_app(stand.manager, HttpOptions(), {}))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/batches/x"), ("DELETE", "/v1/files/x")):
            reply = await client.request(method, path)
            assert reply.status_code == 400 and "--batch-dir" in reply.json()["error"]["message"]


# --- what batches cost others -----------------------------------------------------------------------------------------------------


async def test_a_client_with_many_batches_has_a_few_at_a_time(site: MakeSite) -> None:
    async with site(per_step=0, keys=("one", "two")) as here:
        many = [await here.batch([line("a")], until=False) for _ in range(batch_runner.MAX_RUNNING + 4)]
        for batch in many[: batch_runner.MAX_RUNNING]:
            await here.ended(batch.id, wanted=("in_progress",))
        other = await here.batch([line("a")], "two", until=False)
        await here.ended(other.id, "two", ("in_progress",))
        assert len(here.runner._jobs) == batch_runner.MAX_RUNNING + 1
        assert (await here.openai().batches.retrieve(many[-1].id)).status == "validating"
        for batch in (*many[batch_runner.MAX_RUNNING :], *many):  # those that wait end before those that run
            if batch.status not in ENDED:
                await here.http().post(f"/v1/batches/{batch.id}/cancel")
                assert (await here.ended(batch.id)).status == "cancelled"
        assert len(here.runner._jobs) == 1


@pytest.mark.parametrize("sign", ["x", "\N{GRINNING FACE}"], ids=["latin", "emoji"])
async def test_rows_that_wait_are_small_whatever_they_say(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "in"
    path.write_bytes(written([line(f"{i}" + sign * 500, sign * 600) for i in range(1, 100)]))
    tracemalloc.start()
    try:
        rows, errors = read_input(path, CHAT, 1000, 1 << 20)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(rows) == 99 and not errors
    assert kept < 400 * max(len(rows), 1) + 20_000


@pytest.mark.parametrize("value", ["[]", "{}", '{"a":[]}', "[[[[]]]]"])
async def test_long_lines_are_counted_before_objects_are_made(tmp_path: Path, value: str) -> None:
    path = tmp_path / "in"
    filler = ",".join([value] * (6_000_000 // len(value)))
    path.write_bytes(
        f'{{"custom_id":"a","method":"POST","url":"{CHAT}","body":{{"messages":[],"metadata":[{filler}]}}}}\n'.encode()
    )
    size = path.stat().st_size
    tracemalloc.start()
    try:
        rows, errors = read_input(path, CHAT, 1000, 16 << 20)
        _, peak = tracemalloc.get_traced_memory()
        body_of(path.read_bytes(), CHAT, "a")
        _, peak_of_body = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not rows and errors[0].code == "invalid_json_line" and "values" in errors[0].message
    assert peak < 3 * size and peak_of_body < 5 * size


async def test_a_batch_that_is_cancelled_while_its_input_is_read(site: MakeSite) -> None:
    async with site() as here:
        async with here.runner._turns.place("another"):
            batch = await here.batch([line("a")], until=False)
            while batch.id not in here.runner._jobs:
                await asyncio.sleep(0.01)
            await here.openai().batches.cancel(batch.id)
        assert (await here.ended(batch.id)).status == "cancelled"


async def test_cancelled_requests_fill_no_more_than_the_room_that_there_is(site: MakeSite) -> None:
    most = 40_000
    async with site(per_step=0, keys=("one", "two"), max_bytes=most) as here:
        names = [f"{i}" + "\N{GRINNING FACE}" * 500 for i in range(4)]
        data = "".join(json.dumps(line(name), ensure_ascii=False) + "\n" for name in names).encode()
        client = here.openai()
        file = await client.files.create(file=("in.jsonl", data), purpose="batch")
        told = []
        for _ in range(8):
            response = await here.http().post(
                "/v1/batches", json={"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
            )
            if response.status_code != 200:
                assert response.status_code == 503 and "delete some" in response.text
                break
            batch = response.json()
            await client.batches.cancel(batch["id"])
            told.append(await here.ended(batch["id"]))
        assert told and all(batch.status == "cancelled" for batch in told)
        assert told[0].error_file_id or told[0].errors.data[0].code == "no_room"
        assert any(batch.errors and batch.errors.data[0].code == "no_room" for batch in told)
        assert sum(path.stat().st_size for path in here.runner.files.folder.glob("files/*")) <= most
        await here.openai("two").files.create(file=("a", b"x" * 5000), purpose="batch")  # another finds its part


@pytest.mark.parametrize(("place", "at_once"), [(1 << 20, 8), (300, 2), (10, 1)])
async def test_few_long_requests_are_in_memory_at_once(
    site: MakeSite, monkeypatch: pytest.MonkeyPatch, place: int, at_once: int
) -> None:
    monkeypatch.setattr(batch_job, "PLACE_BYTES", place)
    running, most, send = 0, 0, RowCalls.send

    async def counted(self: RowCalls, *call: Any) -> tuple[int, bytes]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await send(self, *call)
        finally:
            running -= 1

    monkeypatch.setattr(RowCalls, "send", counted)
    async with site(window=8) as here:
        batch = await here.batch([line(f"{i}", user="x" * 800) for i in range(12)])
        assert batch.status == "completed" and batch.request_counts.completed == 12
    assert 1 <= most <= at_once


async def test_the_oldest_that_have_ended_are_forgotten(site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_routes, "MAX_ENDED", 3)
    async with site() as here:
        others = await here.batch([line("a")], "two")
        ended = [(await here.batch([line("a", temperature=-1)])).id for _ in range(6)]
        known = [batch.id async for batch in here.openai().batches.list()]
        assert known == ended[:1:-1] and (await here.ended(others.id, "two")).id == others.id
