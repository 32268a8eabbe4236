"""--state-dir: stored responses that survive the server, and that several servers share."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.errors import ConfigError, NoSuchResponseError
from sglang.srt.server.openai.responses.response_disk import DiskResponses, SharedResponses
from sglang.srt.server.openai.responses.store import StoredResponse, history_of
from tests.server.conftest import MakeStand
from tests.server.http_tools import client_of


def response(name: str, previous: str | None = None, words: str = "hi") -> dict[str, Any]:
    output = [{"id": f"msg_{name}", "type": "message", "content": [{"type": "output_text", "text": words}]}]
    return {"id": name, "output": output, "previous_response_id": previous}


async def test_a_conversation_goes_on_after_a_restart_and_on_another_server(make_stand: MakeStand, tmp_path: Path) -> None:
    state, body = str(tmp_path / "state"), {"model": "default", "max_output_tokens": 4}
    async with client_of(make_stand(state_dir=state)) as first, client_of(make_stand(state_dir=state)) as second:
        one = (await first.post("/v1/responses", json={**body, "input": "a b"})).json()
        two = (await second.post("/v1/responses", json={**body, "input": "c", "previous_response_id": one["id"]})).json()
        assert two["previous_response_id"] == one["id"], two
        shown = (await first.get(f"/v1/responses/{two['id']}")).json()
        assert shown == two
    async with client_of(make_stand(state_dir=state)) as third:
        more = {**body, "input": "d", "previous_response_id": two["id"]}
        assert (await third.post("/v1/responses", json=more)).status_code == 200
        items = (await third.get(f"/v1/responses/{one['id']}/input_items")).json()
        assert items["data"][0]["content"] is not None
        refers = {**body, "input": [{"type": "item_reference", "id": two["output"][0]["id"]}, {"role": "user", "content": "e"}]}
        assert (await third.post("/v1/responses", json=refers)).status_code == 200
        assert (await third.delete(f"/v1/responses/{one['id']}")).json()["deleted"]
    async with client_of(make_stand(state_dir=state)) as fourth:
        assert (await fourth.get(f"/v1/responses/{one['id']}")).status_code == 404
        reply = await fourth.post("/v1/responses", json={**body, "input": "d", "previous_response_id": two["id"]})
        assert reply.status_code == 400 and one["id"] in reply.text


async def test_what_another_server_deletes_is_gone_here(tmp_path: Path) -> None:
    here, there = SharedResponses(tmp_path), SharedResponses(tmp_path)
    here.put("k", [], response("r1"))
    await there.fetch("r1", "k")
    assert there.get("r1", "k").output_ids == ("msg_r1",)
    await there.forget("r1", "k")
    await there.fetch("r1", "k")
    await here.fetch("r1", "k")
    for store in (here, there):
        with pytest.raises(NoSuchResponseError):
            store.get("r1", "k")
        store.close()


async def test_owners_do_not_meet(tmp_path: Path) -> None:
    here, there = SharedResponses(tmp_path), SharedResponses(tmp_path)
    here.put("k", [{"text": "mine"}], response("r1"))
    here.put("other", [{"text": "yours"}], response("r1"))
    await here.fetch("r1", "k")
    for owner, words in (("k", b"mine"), ("other", b"yours")):
        await there.fetch("r1", owner)
        assert words in there.get("r1", owner).items
    await there.fetch("r1", "nobody")
    await there.fetch_referred([{"type": "item_reference", "id": "msg_r1"}], "nobody")
    assert there.peek("r1", "nobody") is None
    here.close()
    there.close()


async def test_a_long_chain_and_names_of_every_kind(tmp_path: Path) -> None:
    here, there = SharedResponses(tmp_path), SharedResponses(tmp_path)
    names = ["'; drop table responses;--", "a\nb", "é", "r" * 4000, *(f"r{i}" for i in range(40))]
    previous = None
    for name in names:
        here.put("k", [{"n": name}], response(name, previous))
        previous = name
    await here.fetch(previous, "k")
    await there.fetch(previous, "k")
    assert len(there.chain(previous, "k")) == len(names) and len(history_of(there.chain(previous, "k"))) == 2 * len(names)
    here.close()
    there.close()


def test_the_oldest_of_who_holds_most_make_room(tmp_path: Path) -> None:
    disk = DiskResponses(tmp_path / "r.sqlite3", max_bytes=1000)
    disk.put("small", "s", StoredResponse(b"x" * 100, b"", b"", None))
    for i in range(20):
        disk.put("large", f"l{i}", StoredResponse(b"x" * 200, b"", b"", None, (f"o{i}",)))
    assert disk.get("small", "s") is not None and disk.get("large", "l19") is not None
    assert disk.get("large", "l0") is None and disk.of_output("large", "o0") is None
    disk.close()


async def test_a_disk_that_cannot_be_written_loses_nothing_that_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(DiskResponses, "put", full)
    here = SharedResponses(tmp_path)
    here.put("k", [], response("r1"))
    await asyncio.sleep(0)
    await here.fetch("r1", "k")
    assert here.get("r1", "k").previous is None
    here.close()


def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "responses.sqlite3").write_bytes(b"dear diary " * 1000)
    with pytest.raises(ConfigError, match="cannot be used"):
        SharedResponses(tmp_path)
