"""Clients that are, or pretend to be, another client: other keys, other sites, odd spellings."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.attack.target import ADMIN, KEY, OTHER, Target

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
        assert http.post("/generate", json=body, headers=two).status_code == 400
        assert http.post("/close_session", json={"session_id": "s"}, headers=two).status_code == 400
        assert http.post("/close_session", json={"session_id": "s"}, headers=one).status_code == 200


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
