"""Clients that are, or pretend to be, another client: other keys, other sites, odd spellings."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.attack.target import ADMIN, KEY, OTHER, Scale, Target

BODY = {"text": "x", "sampling_params": {"max_new_tokens": 1}}


def spelled(key: str) -> list[dict[str, str]]:
    """Headers that all carry the same key."""
    return [
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer {key}"},
        {"Authorization": f"Bearer  {key}"},
        {"Authorization": f"BEARER {key}"},
        {"X-Api-Key": key},
    ]


def client(target: Target) -> httpx.Client:
    return httpx.Client(base_url=target.server.url, timeout=60, trust_env=False)


def test_every_spelling_of_a_key_is_one_client(text_target: Target) -> None:
    with client(text_target) as http:
        for headers in spelled(KEY):
            made = http.post("/v1/responses", json={"input": "x", "max_output_tokens": 1}, headers=headers)
            assert made.status_code == 200, made.text
            path = f"/v1/responses/{made.json()['id']}"
            for own in spelled(KEY):
                assert http.get(path, headers=own).status_code == 200
            for foreign in spelled(OTHER):
                assert http.get(path, headers=foreign).status_code == 404
                assert http.delete(path, headers=foreign).status_code == 404
            assert http.delete(path, headers=headers).status_code == 200


def test_names_belong_to_their_client(text_target: Target) -> None:
    one, two = {"X-Api-Key": KEY}, {"X-Api-Key": OTHER}
    with client(text_target) as http:
        assert http.post("/open_session", json={"session_id": "s", "capacity_of_str_len": 100}, headers=one).status_code == 200
        body = BODY | {"session_params": {"id": "s"}}
        assert http.post("/generate", json=body, headers=one).status_code == 200
        assert http.post("/generate", json=body, headers=two).status_code == 404
        assert http.post("/close_session", json={"session_id": "s"}, headers=two).status_code == 404
        assert http.post("/close_session", json={"session_id": "s"}, headers=one).status_code == 200


def test_what_is_one_keys_is_no_others(text_target: Target) -> None:
    """By every route that takes the name of a response, an item, a session or a request, however the name is written."""
    own, foreign = {"X-Api-Key": KEY}, {"X-Api-Key": OTHER}
    with client(text_target) as http:
        first = http.post("/v1/responses", json={"input": "secret", "max_output_tokens": 4}, headers=own).json()
        name, item = first["id"], first["output"][0]["id"]
        assert (
            http.post("/open_session", json={"session_id": "mine", "capacity_of_str_len": 1000}, headers=own).status_code == 200
        )
        spellings = [name, f"%{ord(name[0]):02x}{name[1:]}", name + "/", "./" + name, name + "?x=1", name.upper(), name + "%00"]
        for spelling in spellings:
            for method in ("GET", "DELETE"):
                reply = http.request(method, f"/v1/responses/{spelling}", headers=foreign)
                assert reply.status_code in (404, 405) and "secret" not in reply.text
            reply = http.get(f"/v1/responses/{spelling.partition('?')[0]}/input_items", headers=foreign)
            assert reply.status_code == 404 and "secret" not in reply.text
        items = [{"type": "item_reference", "id": item}]
        stolen: list[tuple[str, dict[str, Any]]] = [
            ("/v1/responses", {"input": "x", "previous_response_id": name, "max_output_tokens": 1}),
            ("/v1/responses", {"input": items, "max_output_tokens": 1}),
            ("/v1/responses/input_tokens", {"input": "x", "previous_response_id": name}),
            ("/v1/responses/input_tokens", {"input": items}),
            ("/generate", BODY | {"session_params": {"id": "mine"}}),
            ("/v1/completions", {"prompt": "x", "max_tokens": 1, "session_params": {"id": "mine"}}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "session_params": {"id": "mine"}}),
            ("/close_session", {"session_id": "mine"}),
        ]  # fmt: skip
        for path, body in stolen:
            assert http.post(path, json=body, headers=foreign).status_code in (400, 404), path
            absent = json.loads(json.dumps(body).replace(name, "resp_0").replace(item, "msg_0").replace("mine", "none"))
            one, other = http.post(path, json=body, headers=foreign), http.post(path, json=absent, headers=foreign)
            told = (one.text.replace(name, "resp_0").replace(item, "msg_0").replace("mine", "none"), one.status_code)
            assert told == (other.text, other.status_code), "it is told as what does not exist"
        for path, body in stolen:
            reply = http.post(path, json=body, headers=own)
            assert reply.status_code == 200 or "session_params" in reply.text, f"{path}: {reply.text}"
        assert http.delete(f"/v1/responses/{name}", headers=own).status_code == 200


def test_one_key_aborts_no_other_keys_request(text_target: Target) -> None:
    body = {"text": "x", "rid": "the same", "sampling_params": {"max_new_tokens": 300, "ignore_eos": True}}
    with client(text_target) as http, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(http.post, "/generate", json=body, headers={"X-Api-Key": key}) for key in (KEY, OTHER)]
        while text_target.load() < 2 and not any(one.done() for one in running):
            time.sleep(0.01)
        for rid in ("the same", "the same ", "key-a/the same"):
            assert http.post("/abort_request", json={"rid": rid}, headers={"X-Api-Key": OTHER}).status_code == 200
        assert http.post("/abort_request", json={"abort_all": True}, headers={"X-Api-Key": OTHER}).status_code in (
            400,
            401,
            403,
        )
        kept, aborted = (one.result().json()["meta_info"] for one in running)
    assert kept["finish_reason"]["type"] == "length" and kept["completion_tokens"] == 300
    assert aborted["finish_reason"]["type"] == "abort"


def test_floods_of_what_is_stored(text_target: Target, scale: Scale) -> None:
    """One key stores without end: memory has its limit, and what others stored before stays."""
    own, foreign = {"X-Api-Key": OTHER}, {"X-Api-Key": KEY}
    with client(text_target) as http, text_target.watched() as watch, ThreadPoolExecutor(4) as pool:
        kept = http.post("/v1/responses", json={"input": "kept", "max_output_tokens": 1}, headers=own).json()["id"]
        assert http.post("/open_session", json={"session_id": "kept", "capacity_of_str_len": 9}, headers=own).status_code == 200
        large = {
            "input": [{"role": "user", "content": "x"}],
            "max_output_tokens": 1,
            "instructions": "y",
            "metadata": {"a": "x" * 3_000_000},
        }
        names = list(
            pool.map(lambda _: http.post("/v1/responses", json=large, headers=foreign).json()["id"], range(20 * scale.times))
        )
        sessions = [http.post("/open_session", json={"capacity_of_str_len": 10**9}, headers=foreign) for _ in range(1200)]
        assert {reply.status_code for reply in sessions} == {200, 503}
        assert http.post("/open_session", json={"session_id": "more", "capacity_of_str_len": 9}, headers=own).status_code == 200
        assert http.get(f"/v1/responses/{kept}", headers=own).status_code == 200
        for reply in sessions:
            if reply.status_code == 200:
                http.post("/close_session", json={"session_id": reply.json()}, headers=foreign)
        for name in names:
            http.delete(f"/v1/responses/{name}", headers=foreign)
        for name in ("kept", "more"):
            assert http.post("/close_session", json={"session_id": name}, headers=own).status_code == 200
        assert http.delete(f"/v1/responses/{kept}", headers=own).status_code == 200
    assert watch.peak_mb < text_target.warm_mb + 128 + 192, f"{watch.peak_mb:.0f} MB"
    text_target.check(watch)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Host": "evil.example"}, (400, 403, 421)),
        ({"Host": "127.0.0.1.evil.example:30000"}, (400, 403, 421)),
        ({"Origin": "https://evil.example"}, (400, 403)),
        ({"Origin": "null"}, (400, 403)),
        ({"Content-Type": "text/plain"}, (415,)),
        ({"Content-Type": "application/x-www-form-urlencoded"}, (415,)),
        ({"Content-Type": "multipart/form-data; boundary=x"}, (415,)),
        ({"X-Request-Timeout": "nan"}, (400,)),
    ],
)
def test_what_a_web_page_can_send(text_target: Target, headers: dict[str, str], status: tuple[int, ...]) -> None:
    own: dict[str, Any] = {"Content-Type": "application/json", "X-Api-Key": ADMIN} | headers
    with client(text_target) as http:
        for path in ("/generate", "/v1/chat/completions", "/abort_request", "/tokenize"):
            reply = http.post(path, content=b'{"text": "x"}', headers=own)
            assert reply.status_code in status, f"{path}: {reply.status_code} {reply.text}"
    assert text_target.ask() == text_target.answer
