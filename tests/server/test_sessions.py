"""Sessions: conversations that the server keeps as trees of requests."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from sglang.srt.errors import OverloadError, RequestError
from sglang.srt.messages import TokenizedReq
from sglang.srt.server.sessions import NODE_TOKENS, SessionParams, Sessions
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of


async def ask(client: httpx.AsyncClient, session: str, ids: list[int], name: str, **params: Any) -> list[int]:
    """One turn of three tokens; its answer."""
    body = {"input_ids": ids, "rid": name, "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}
    reply = await client.post("/generate", json=body | {"session_params": {"id": session, **params}})
    assert reply.status_code == 200, reply.text
    answer: list[int] = reply.json()["output_ids"]
    return answer


def sent(stand: Stand, rid: str) -> list[int]:
    """The whole prompt that the scheduler was given."""
    return next(m.input_ids.tolist() for m in stand.scheduler.received if isinstance(m, TokenizedReq) and m.rid == rid)


async def test_append_branch_and_replace(stand: Stand) -> None:
    async with client_of(stand) as client:
        session = (await client.post("/open_session", json={})).json()
        first = [5, 6] + await ask(client, session, [5, 6], "r1")
        second = first + [7] + await ask(client, session, [7], "r2", rid="r1")
        await ask(client, session, [8], "r3", rid="r1")
        await ask(client, session, [9], "r4", rid="r2")
        assert sent(stand, "r2") == [*first, 7]
        assert sent(stand, "r3") == [*first, 8], "a branch knows nothing of its sister"
        assert sent(stand, "r4") == [*second, 9]
        await ask(client, session, [10], "r5", rid="r1", replace=True)
        assert sent(stand, "r5") == [*first, 10]
        for gone in ("r2", "r3", "r4"):
            body = {"input_ids": [1], "session_params": {"id": session, "rid": gone}}
            reply = await client.post("/generate", json=body)
            assert reply.status_code == 400 and gone in reply.json()["error"]["message"]
        await ask(client, session, [11], "r6", replace=True)
        assert sent(stand, "r6") == [11], "without a rid a request begins anew, and replaces everything"
        assert (await client.post("/close_session", json={"session_id": session})).status_code == 200
        body = {"input_ids": [1], "session_params": {"id": session, "rid": "r6"}}
        assert (await client.post("/generate", json=body)).status_code == 404
    assert stand.manager.sessions.num_tokens == 0


async def test_offset_and_dropped_output(stand: Stand) -> None:
    async with client_of(stand) as client:
        session = (await client.post("/open_session", json={"session_id": "mine"})).json()
        assert session == "mine"
        answer = await ask(client, session, [5, 6], "r1")
        await ask(client, session, [7], "r2", rid="r1", drop_previous_output=True)
        await ask(client, session, [7], "r3", rid="r1", offset=1)
        await ask(client, session, [7], "r4", rid="r1", offset=-1)
        assert [sent(stand, r) for r in ("r2", "r3", "r4")] == [[5, 6, 7], [5, 7], [5, 6, *answer[:-1], 7]]
        await ask(client, session, [8], "r5", rid="r3")
        assert sent(stand, "r5")[:2] == [5, 7], "what was left out stays out"
        reply = await client.post(
            "/generate", json={"input_ids": [1], "session_params": {"id": "mine", "rid": "r1", "offset": 6}}
        )
        assert reply.status_code == 400 and "offset" in reply.json()["error"]["message"]


async def test_text_is_appended_without_the_token_that_begins_texts(stand: Stand) -> None:
    tokenizer = stand.manager.need_tokenizer()
    async with client_of(stand) as client:
        session = (await client.post("/open_session", json={})).json()
        for rid, text, before in (("a", "The quick", None), ("b", " brown fox", "a")):
            params = {"id": session} | ({"rid": before} if before else {})
            body = {"text": text, "rid": rid, "sampling_params": {"max_new_tokens": 2}, "session_params": params}
            assert (await client.post("/generate", json=body)).status_code == 200
    appended = sent(stand, "b")
    assert appended[: len(sent(stand, "a"))] == sent(stand, "a")
    assert appended[-len(tokenizer.encode(" brown fox", False)) :] == tokenizer.encode(" brown fox", False)


async def test_a_turn_that_runs_or_failed_cannot_be_followed(stand: Stand) -> None:
    stand.scheduler.paused = True
    async with client_of(stand) as client:
        session = (await client.post("/open_session", json={})).json()
        task = asyncio.create_task(ask(client, session, [5], "r1"))
        await asyncio.sleep(0.05)
        for params in ({"rid": "r1"}, {"replace": True}):
            reply = await client.post("/generate", json={"input_ids": [1], "session_params": {"id": session, **params}})
            assert reply.status_code == 400 and "still running" in reply.json()["error"]["message"]
        stand.scheduler.paused = False
        await task
        stand.scheduler.poison = "r2"
        body = {"input_ids": [1], "rid": "r2", "session_params": {"id": session, "rid": "r1"}}
        assert (await client.post("/generate", json=body)).status_code == 400
        stand.scheduler.poison = None
        await ask(client, session, [9], "r2", rid="r1")  # the name is free again
        again = await client.post("/generate", json=body)
        assert again.status_code == 400 and "already" in again.json()["error"]["message"]


async def test_a_stream_that_is_left_is_no_part_of_the_session(stand: Stand) -> None:
    name = stand.manager.open_session(None, None)
    from sglang.srt.server.native.format import parse_generate

    body = {"input_ids": [5], "rid": "r1", "stream": True, "session_params": {"id": name}}
    call = await stand.manager.start(parse_generate(body).req)
    before = stand.manager.sessions.num_tokens
    assert before > NODE_TOKENS
    call.cancel()
    assert stand.manager.sessions.num_tokens == NODE_TOKENS
    with pytest.raises(RequestError):
        stand.manager.sessions.place(SessionParams(name, "r1"), "")


@pytest.mark.parametrize(
    "body",
    [
        {"input_ids": [[1], [2]]},
        {"input_ids": [1], "sampling_params": {"n": 2}},
        {"text": "a", "token_healing": True},
        {"input_ids": [1], "session_params": {"id": "s", "name": 1}},
        {"input_ids": [1], "session_params": {"id": 3}},
        {"input_ids": [1], "session_params": {}},
        {"input_ids": [1], "session_params": "s"},
        {"input_ids": [1], "session_params": {"id": "s", "offset": True}},
    ],
)
async def test_what_sessions_do_not_take(stand: Stand, body: dict[str, Any]) -> None:
    async with client_of(stand) as client:
        await client.post("/open_session", json={"session_id": "s"})
        reply = await client.post("/generate", json={"session_params": {"id": "s"}} | body)
        assert reply.status_code == 400 and reply.json()["error"]["message"]
        for path, wrong in (
            ("/open_session", {"session_id": "s"}),
            ("/open_session", {"session_id": ""}),
            ("/open_session", {"session_id": "x" * 300}),
            ("/open_session", {"capacity_of_str_len": -1}),
            ("/close_session", {}),
        ):
            assert (await client.post(path, json=wrong)).status_code == 400, (path, wrong)


async def test_a_session_that_is_not_there_is_not_found(stand: Stand) -> None:
    async with client_of(stand) as client:
        for path, wrong in (
            ("/generate", {"input_ids": [1], "session_params": {"id": "nobody's"}}),
            ("/close_session", {"session_id": "nobody's"}),
        ):
            reply = await client.post(path, json=wrong)
            assert reply.status_code == 404 and "no session" in reply.json()["error"]["message"]


async def test_a_capacity_counts_characters(stand: Stand) -> None:
    async with client_of(stand) as client:
        session = (await client.post("/open_session", json={"capacity_of_str_len": 20})).json()
        body = {
            "text": "The quick brown",
            "rid": "a",
            "sampling_params": {"max_new_tokens": 1},
            "session_params": {"id": session},
        }
        assert (await client.post("/generate", json=body)).status_code == 200
        body |= {"rid": "b", "session_params": {"id": session, "rid": "a"}}
        reply = await client.post("/generate", json=body)
        assert reply.status_code == 400 and "20 characters" in reply.json()["error"]["message"]


async def test_numbers_of_sessions_and_tokens_are_bounded(make_stand: MakeStand) -> None:
    stand = make_stand(max_sessions=2, max_session_tokens=100)
    async with client_of(stand) as client:
        names = [(await client.post("/open_session", json={})).json() for _ in range(2)]
        assert (await client.post("/open_session", json={})).status_code == 503
        body = {"input_ids": [1] * 80, "sampling_params": {"max_new_tokens": 1}, "session_params": {"id": names[0]}}
        full = await client.post("/generate", json=body)
        assert full.status_code == 503 and "Retry-After" in full.headers
        await client.post("/close_session", json={"session_id": names[0]})
        assert (await client.post("/open_session", json={})).status_code == 200
    assert stand.manager.num_in_flight == 0


async def test_a_session_belongs_to_the_key_that_opened_it(make_stand: MakeStand) -> None:
    stand = make_stand(api_keys=("one", "two"))
    async with client_of(stand, authorization="Bearer one") as client, client_of(stand, authorization="Bearer two") as other:
        await client.post("/open_session", json={"session_id": "s"})
        body = {"input_ids": [1], "sampling_params": {"max_new_tokens": 1}, "session_params": {"id": "s"}}
        assert (await other.post("/generate", json=body)).status_code == 404
        assert (await other.post("/close_session", json={"session_id": "s"})).status_code == 404
        assert (await client.post("/generate", json=body)).status_code == 200


def test_sessions_that_nobody_uses_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("sglang.srt.server.sessions.time.monotonic", lambda: now)
    sessions = Sessions(2, 1000, timeout=10)
    sessions.open("idle", None, "")
    sessions.open("busy", None, "")
    turn = sessions.enter(sessions.place(SessionParams("busy"), ""), "r", [1, 2])
    now = 20.0
    with pytest.raises(RequestError, match="not used for long"):
        sessions.place(SessionParams("idle"), "")
    turn.add([3])
    turn.finish()
    assert sessions.place(SessionParams("busy", "r"), "").ids == [1, 2, 3]
    assert sessions.num_tokens == 2 * NODE_TOKENS + 3


def test_a_session_that_changes_while_a_prompt_is_read() -> None:
    sessions = Sessions(2, 1000, timeout=10)
    sessions.open("s", None, "")
    turn = sessions.enter(sessions.place(SessionParams("s"), ""), "r", [1])
    turn.finish()
    late = sessions.place(SessionParams("s", "r"), "")
    sessions.enter(sessions.place(SessionParams("s", replace=True), ""), "x", [2]).finish()
    with pytest.raises(RequestError):
        sessions.enter(late, "y", [1, 3])
    sessions.close("s", "")
    sessions.open("s", None, "")
    with pytest.raises(RequestError):
        sessions.enter(late, "y", [1, 3])
    assert len(sessions) == 1
    with pytest.raises(OverloadError):
        sessions.enter(sessions.place(SessionParams("s"), ""), "big", list(range(2000)))


def test_a_session_of_the_default_model_answers_as_the_whole_prompt_does(http: httpx.Client) -> None:
    session = http.post("/open_session", json={}).json()
    greedy = {"max_new_tokens": 8, "temperature": 0}
    first = http.post("/generate", json={"text": "The capital of France is", "rid": "s1", "sampling_params": greedy,
                                         "session_params": {"id": session}}).json()  # fmt: skip
    body = {"text": " The capital of Italy is", "sampling_params": greedy, "session_params": {"id": session, "rid": "s1"}}
    second = http.post("/generate", json=body | {"rid": "s2"}).json()
    assert second["meta_info"]["cached_tokens"] >= first["meta_info"]["prompt_tokens"]
    ids = http.post("/tokenize", json={"text": ["The capital of France is", " The capital of Italy is"]}).json()["tokens"]
    whole = http.post("/generate", json={"input_ids": ids[0] + first["output_ids"] + ids[1], "sampling_params": greedy}).json()
    assert whole["output_ids"] == second["output_ids"]
    assert http.post("/close_session", json={"session_id": session}).status_code == 200
