"""Several models behind one port: what a client gets is what a server of its model alone gives."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sglang.common.server_process import end_process
from tests.cluster.conftest import CHAT, SEED, start_several
from tests.conftest import RunningServer
from tests.server.test_processes import alive, wait_dead

pytestmark = pytest.mark.cluster

TIMED = re.compile(
    r'"(id|created|created_at|completed_at|e2e_latency|ttft|queue_time|item_id|response_id|system_fingerprint)":\s*("[^"]*"|[0-9.e+-]+)'
)
"""what differs from one reply to the next"""
LONG: dict[str, Any] = {"sampling_params": {"max_new_tokens": 3000, "ignore_eos": True, "temperature": 0}, "stream": True}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT | {"temperature": 0}),
    "chat, sampled, n": ("/v1/chat/completions", CHAT | {"n": 2, "temperature": 1.0, "seed": 3, "logprobs": True}),
    "chat, streamed": (
        "/v1/chat/completions",
        CHAT | {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "chat, a schema": (
        "/v1/chat/completions",
        CHAT
        | {
            "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}},
        },
    ),
    "completions": ("/v1/completions", {"prompt": ["one", "two"], "max_tokens": 5, "temperature": 0, "echo": True}),
    "responses": ("/v1/responses", {"input": "a b c", "max_output_tokens": 5, "temperature": 0}),
    "responses, streamed": ("/v1/responses", {"input": "a b c", "max_output_tokens": 5, "temperature": 0, "stream": True}),
    "messages": ("/v1/messages", CHAT | {"temperature": 0}),
    "messages, streamed": ("/v1/messages", CHAT | {"temperature": 0, "stream": True}),
    "count_tokens": ("/v1/messages/count_tokens", {"messages": CHAT["messages"]}),
    "generate": ("/generate", {"text": "a b", "sampling_params": {"max_new_tokens": 5, "temperature": 0}}),
    "tokenize": ("/tokenize", {"prompt": "Füße 東京"}),
    "score": ("/v1/score", {"text_1": "a", "text_2": "b"}),
    "a wrong value": ("/v1/chat/completions", CHAT | {"temperature": -1}),
    "an unknown field": ("/v1/chat/completions", CHAT | {"temprature": 1}),
    "an unknown path": ("/v1/nothing", {}),
}


def seen(reply: httpx.Response) -> tuple[int, str, str]:
    text = re.sub(r'"(req|resp|msg|rs|fc)_[0-9a-f]+"', '""', TIMED.sub("", reply.text))
    return reply.status_code, reply.headers.get("content-type", ""), text


def chat(client: httpx.Client, model: str, **more: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json=CHAT | {"model": model, "temperature": 0} | more)


def states(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {state["name"]: state for state in client.get("/models").json()["models"]}


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize("call", CALLS)
def test_replies_are_those_of_a_server_of_one_model(http: httpx.Client, alone: RunningServer, call: str) -> None:
    path, body = CALLS[call]
    body = body | {"model": "alpha"} if path.startswith("/v1") else body
    with httpx.Client(base_url=alone.url, timeout=120, trust_env=False) as single:
        expected = [seen(single.post(path, json=body)) for _ in range(2)][1]
    assert [seen(http.post(path, json=body)) for _ in range(2)][1] == expected
    assert seen(http.post(f"/models/alpha{path}", json=body)) == expected


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"model": 3, "messages": []}', b'{"model": "alpha"}' + b" " * 70000 + b"x", b"\xff"],
    ids=["empty", "cut", "list", "number", "long", "no text"],
)
def test_bodies_that_are_no_request(http: httpx.Client, alone: RunningServer, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    expected = httpx.post(f"{alone.url}/v1/chat/completions", content=content, headers=headers, trust_env=False)
    found = http.post("/v1/chat/completions", content=content, headers=headers)
    assert 400 <= found.status_code < 500
    assert seen(found) == seen(expected)


def test_the_model_chooses_and_none_means_the_first(http: httpx.Client) -> None:
    replies = {name: chat(http, name).json()["choices"][0]["message"]["content"] for name in ("alpha", "beta", "gamma")}
    assert len(set(replies.values())) == 3
    first = chat(http, "default").json()
    assert (first["model"], first["choices"][0]["message"]["content"]) == ("default", replies["alpha"])
    assert http.post("/v1/chat/completions", json=CHAT | {"temperature": 0}).json()["choices"] == first["choices"]


def test_all_are_listed_whether_loaded_or_not(http: httpx.Client) -> None:
    chat(http, "alpha")
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert list(cards) == ["alpha", "beta", "gamma"]
    assert cards["alpha"]["loaded"] and cards["alpha"]["max_model_len"] == 4096
    assert [http.get(f"/v1/models/{name}").json()["id"] for name in cards] == list(cards)
    assert http.get("/v1/models/default").json()["id"] == "alpha"


def test_an_unknown_model_is_404_with_the_nearest_name(http: httpx.Client) -> None:
    reply = chat(http, "alhpa")
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "did you mean 'alpha'" in error["message"]
    message = http.post("/v1/messages", json=CHAT | {"model": "x" * 3000})
    assert message.status_code == 404 and message.json()["error"]["type"] == "not_found_error" and len(message.text) < 1000
    assert http.get("/v1/models/nothing").status_code == 404
    assert "beta" in http.post("/models/bta/generate", json={"text": "x"}).json()["error"]["message"]


def test_the_least_used_one_leaves_after_its_requests(http: httpx.Client) -> None:
    chat(http, "alpha")
    chat(http, "beta")
    pieces = []
    with http.stream("POST", "/models/beta/generate", json=LONG | {"text": "a"}) as stream:
        lines = stream.iter_lines()
        pieces.append(next(lines))
        chat(http, "alpha")
        with http.stream("POST", "/models/alpha/generate", json=LONG | {"text": "a"}) as other:
            next(other.iter_lines())  # both are in use: beta was used before alpha
            replies: list[httpx.Response] = []
            thread = threading.Thread(target=lambda: replies.append(chat(http, "gamma")))
            thread.start()
            pieces += lines
        thread.join(120)
    assert json.loads(pieces[-4 if not pieces[-1] else -3].removeprefix("data: "))["meta_info"]["completion_tokens"] == 3000
    assert replies[0].status_code == 200
    found = states(http)
    assert [found[name]["state"] for name in ("beta", "gamma")] in (["unloaded", "ready"], ["ready", "ready"])
    assert sum(state["state"] == "ready" for state in found.values()) == 2


def test_who_leaves_frees_the_model(http: httpx.Client, several: RunningServer) -> None:
    chat(http, "alpha")
    many = {"max_new_tokens": 3000, "ignore_eos": True, "temperature": 1.0, "n": 16}  # sampled: no draft makes it quick
    body = {"text": "a", "sampling_params": many}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{several.url}/models/alpha/generate", json=body, timeout=0.5, trust_env=False)
    wait_for(lambda: states(http)["alpha"]["requests"] == 0)
    load = http.get("/models/alpha/get_load").json()
    wait_for(lambda: not re.search(r'"num_(running_)?reqs":\s*[1-9]', http.get("/models/alpha/get_load").text), 20)
    assert load


def test_stored_responses_and_aborts_find_their_model(http: httpx.Client) -> None:
    body = {"input": "a b c", "max_output_tokens": 5, "temperature": 0, "store": True}
    chat(http, "alpha")
    stored = http.post("/v1/responses", json=body | {"model": "beta"}).json()
    assert http.get(f"/v1/responses/{stored['id']}").json()["output"] == stored["output"]
    assert http.get(f"/v1/responses/{stored['id']}/input_items").status_code == 200
    assert http.delete(f"/v1/responses/{stored['id']}").status_code == 200
    assert http.get(f"/v1/responses/{stored['id']}").status_code == 404
    assert http.post("/abort_request", json={"rid": "nobody"}).status_code == 200
    assert http.post("/flush_cache").status_code == 200


def test_metrics_of_all_are_one_text(http: httpx.Client) -> None:
    chat(http, "alpha")
    chat(http, "beta")
    families = list(text_string_to_metric_families(http.get("/metrics").text))
    assert len({family.name for family in families}) == len(families)
    names = {sample.labels.get("model_name") for family in families for sample in family.samples}
    assert {"alpha", "beta"} <= names
    assert any(family.name == "sglang:gateway_requests" for family in families)


def test_the_page_needs_no_model(http: httpx.Client) -> None:
    before = {name: state["state"] for name, state in states(http).items()}
    assert "<html" in http.get("/").text and http.get("/docs").status_code == 200
    assert http.get("/health").json() == {"status": "ready"} and http.get("/health_generate").status_code == 200
    assert {name: state["state"] for name, state in states(http).items()} == before


@pytest.mark.parametrize(
    "path", ["/flush_cache", "/models/alpha/flush_cache", "/models/alpha/flush%255fcache", "/v1/chat/completions"]
)
def test_pages_of_others_are_refused(http: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        reply = http.request(method, path, headers={"Origin": "https://elsewhere.example", "Content-Type": "application/json"})
        assert reply.status_code == 403 or (method == "GET" and reply.status_code in (404, 405))
    assert http.get("/v1/models", headers={"Host": "elsewhere.example"}).status_code == 403
    assert http.post(path, content="x=1", headers={"Content-Type": "text/plain"}).status_code == 415


def test_a_server_that_dies_is_started_again_and_its_requests_are_answered(http: httpx.Client) -> None:
    body = {"max_tokens": 3500, "ignore_eos": True}
    expected = chat(http, "alpha", **body).json()["choices"]
    pid = states(http)["alpha"]["pid"]
    replies: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: replies.append(chat(http, "alpha", **body))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(
        lambda: states(http)["alpha"].get("requests", 0) > 0 or len(replies) == 3
    )  # who comes later waits for the next one
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(120)
    assert [reply.json()["choices"] for reply in replies] == [expected] * 3
    assert states(http)["alpha"]["pid"] != pid
    wait_dead([pid])


def test_a_stream_whose_server_dies_goes_on_with_the_next_one(http: httpx.Client) -> None:
    body = {"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 600, "ignore_eos": True, "seed": 3}}
    found = []
    for is_killed in (False, True):
        chat(http, "alpha")
        with http.stream("POST", "/models/alpha/generate", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            if is_killed:
                os.kill(states(http)["alpha"]["pid"], signal.SIGKILL)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        last = json.loads(events[-2].removeprefix("data: "))
        found.append((last["text"], last["output_ids"], last["meta_info"]["finish_reason"]))
    assert found[0] == found[1] and len(found[0][1]) == 600


# --- servers of their own ---------------------------------------------------------------------------------------------------


def test_keys_drain_keep_alive_and_memory(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\ntwo\n")
    (tmp_path / "keys").chmod(0o600)
    (tmp_path / "models.yaml").write_text(
        f"alpha: {models['alpha']}\n"
        f"beta:\n  model-path: {models['beta']}\n  keep-alive: 0\n  context-length: 512\n"
        f"huge:\n  model-path: {models['gamma']}\n  max-total-tokens: 2000000000\n"
        f"gone: {tmp_path}/nothing\n"
    )
    flags = ("--models", str(tmp_path / "models.yaml"), "--api-key-file", str(tmp_path / "keys"), "--admin-api-key", "boss")
    server = start_several(tmp_path / "log", *flags, "--drain-seconds", "1", *SEED)
    pids = [server.process.pid]
    one, two, boss = (
        httpx.Client(base_url=server.url, timeout=120, trust_env=False, headers={"Authorization": f"Bearer {key}"})
        for key in ("one", "two", "boss")
    )
    try:
        assert httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 401
        assert httpx.get(f"{server.url}/", trust_env=False).status_code == 200
        # a client's own things are its own
        stored = one.post("/v1/responses", json={"input": "a", "max_output_tokens": 3, "model": "alpha"}).json()
        assert one.get(f"/v1/responses/{stored['id']}").status_code == 200
        assert two.get(f"/v1/responses/{stored['id']}").status_code == 404
        assert one.post("/flush_cache").status_code == 401 and boss.post("/flush_cache").status_code == 200
        # keys are read again
        (tmp_path / "keys").write_text("one\n")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: two.get("/v1/models").status_code == 401)
        assert chat(one, "alpha").status_code == 200
        # kept for as long as it says
        assert one.get("/v1/models/beta").status_code == 200
        assert chat(one, "beta", max_tokens=1000).status_code == 400  # its own context length
        wait_for(lambda: states(one)["beta"]["state"] == "unloaded")
        # what does not fit, and what is not there
        reply = chat(one, "huge")
        assert reply.status_code == 503 and "GiB" in reply.json()["error"]["message"]
        assert states(one)["alpha"]["state"] == "ready", "nobody leaves for what does not fit alone"
        reply = chat(one, "gone")
        assert reply.status_code == 503 and "nothing" in reply.json()["error"]["message"]
        assert states(one)["gone"]["state"] == "failed" and one.get("/health").status_code == 200
        # the end
        replies: list[httpx.Response] = []
        body = LONG | {"text": "a", "stream": False} | {"sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}
        chat(one, "alpha")
        pids += [state["pid"] for state in states(one).values() if "pid" in state]
        threads = [threading.Thread(target=lambda: replies.append(one.post("/generate", json=body))) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: states(one)["alpha"].get("requests", 0) > 0 or len(replies) == 8)
        assert server.stop(timeout=60) == 0
        for thread in threads:
            thread.join(60)
        said = [(reply.status_code, reply.text[-300:]) for reply in replies]
        assert all("shutting down" in text or '"length":4000' in text for _, text in said), said
        wait_dead(pids)
    finally:
        end_process(server.process)


def test_servers_end_with_a_gateway_that_is_killed(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(f"alpha:\n  model-path: {models['alpha']}\n  preload: yes\n")
    server = start_several(tmp_path / "log", "--models", str(tmp_path / "models.yaml"), *SEED)
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        pid = states(client)["alpha"]["pid"]
    assert alive(pid)
    server.process.kill()
    server.process.wait()
    wait_dead([pid])
