"""Several schedulers of one model: the replies of one, also when one of them dies in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sglang.common.server_process import end_process
from tests.cluster.conftest import CHAT, SEED
from tests.cluster.test_several import CALLS, seen, wait_for
from tests.conftest import RunningServer, start_server
from tests.server.test_processes import alive, wait_dead

pytestmark = pytest.mark.cluster

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 60}}, "required": ["city"]},
    },
}
LIST = {"type": "array", "items": {"type": "integer"}, "minItems": 30, "maxItems": 40}
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("/generate", {"text": "a b", "sampling_params": {"max_new_tokens": 300, "temperature": 0, "ignore_eos": True}}),
    "sampled": ("/generate", {"text": "a b", "sampling_params": {"max_new_tokens": 300, "seed": 5, "ignore_eos": True}}),
    "a grammar": (
        "/generate",
        {"text": "a", "sampling_params": {"max_new_tokens": 300, "json_schema": json.dumps(LIST), "seed": 2}},
    ),
    "tools": ("/v1/chat/completions", CHAT | {"max_tokens": 200, "seed": 4, "tools": [WEATHER], "tool_choice": "required"}),
    "n": ("/v1/chat/completions", CHAT | {"max_tokens": 200, "seed": 4, "n": 3, "logprobs": True}),
}


@pytest.fixture(scope="module")
def pair(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("pair") / "log"
    flags = ("--served-model-name", "alpha", "--replicas", "2", "--enable-metrics", "--random-seed", "7", "--threads", "2")
    server = start_server(log, *flags, model=str(models["alpha"]))
    yield server
    end_process(server.process, 30)


def schedulers(server: RunningServer) -> list[int]:
    def is_one(pid: int) -> bool:
        try:
            return b"scheduler_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return [pid for pid in server.children() if is_one(pid)]


def said(url: str, path: str, body: dict[str, Any], when: Any = None) -> dict[Any, Any]:
    """What a stream says, all of it: texts, ids, tool calls, finish reasons and usage, each joined. `when` is called with the number of
    events so far."""
    text: dict[Any, Any] = {}
    with httpx.stream("POST", url + path, json=body | {"stream": True}, timeout=600, trust_env=False) as reply:
        assert reply.status_code == 200, reply.read()
        for count, line in enumerate(line for line in reply.iter_lines() if line.startswith("data: {")):
            if when is not None:
                when(count)
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            if "text" in event:
                meta = event["meta_info"]
                text["text"], text["ids"] = event["text"], event["output_ids"]
                text["end"] = (meta["finish_reason"], meta["completion_tokens"], meta["prompt_tokens"])
            for choice in event.get("choices", ()):
                index, delta = choice["index"], choice["delta"]
                calls = [call["function"] for call in delta.get("tool_calls") or ()]
                tokens = [t["token"] for t in (choice.get("logprobs") or {}).get("content") or ()]
                numbers = [t["logprob"] for t in (choice.get("logprobs") or {}).get("content") or ()]
                before = text.setdefault(index, ["", "", "", [], [], None])
                before[0] += delta.get("content") or ""
                before[1] += "".join(call.get("name") or "" for call in calls)
                before[2] += "".join(call.get("arguments") or "" for call in calls)
                before[3] += tokens
                before[4] += numbers
                before[5] = choice["finish_reason"] or before[5]
    return text


@pytest.mark.parametrize("call", [name for name in CALLS if "unknown path" not in name])
def test_replies_are_those_of_one_scheduler(pair: RunningServer, alone: RunningServer, call: str) -> None:
    path, body = CALLS[call]
    found = []
    for server in (alone, pair):
        with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:
            client.post("/flush_cache")
            found.append(seen(client.post(path, json=body)))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_goes_on_when_its_scheduler_dies(pair: RunningServer, alone: RunningServer, name: str) -> None:
    path, body = STREAMS[name]
    expected = said(alone.url, path, body)
    before = schedulers(pair)
    assert len(before) == 2

    def kill(count: int) -> None:
        """Both, one after the other: the request moves twice."""
        left = [pid for pid in before if alive(pid)]
        if count in (2, 5) and left:
            os.kill(left[0], signal.SIGKILL)
            wait_dead(left[:1])

    assert said(pair.url, path, body, kill) == expected
    log = pair.log.read_text
    wait_for(lambda: log().count("The scheduler is back.") == log().count("starting another one"))
    assert len(schedulers(pair)) == 2 and set(schedulers(pair)) != set(before)


def test_both_work_and_what_they_say_is_added_up(pair: RunningServer) -> None:
    body = {"sampling_params": {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True}}
    prompts = [f"{i} " + "x y z " * 40 for i in range(8)]
    replies: dict[int, httpx.Response] = {}

    def ask(i: int) -> None:
        replies[i] = httpx.post(f"{pair.url}/generate", json=body | {"text": prompts[i]}, timeout=120, trust_env=False)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [r.status_code for r in replies.values()] == [200] * 8
    # a prompt that is asked for again finds its prefix, wherever that is
    again = [httpx.post(f"{pair.url}/generate", json=body | {"text": text}, timeout=120, trust_env=False) for text in prompts]
    assert all(r.json()["meta_info"]["cached_tokens"] > 100 for r in again)
    families = list(text_string_to_metric_families(httpx.get(f"{pair.url}/metrics", trust_env=False).text))
    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert values["sglang:cached_tokens_total"] > 800
    assert httpx.post(f"{pair.url}/flush_cache", timeout=60, trust_env=False).status_code == 200
    cold = httpx.post(f"{pair.url}/generate", json=body | {"text": prompts[0]}, timeout=60, trust_env=False)
    assert cold.json()["meta_info"]["cached_tokens"] == 0
    assert cold.json()["text"] == replies[0].json()["text"]


def test_aborts_and_pauses_reach_all(pair: RunningServer) -> None:
    with httpx.Client(base_url=pair.url, timeout=60, trust_env=False) as client:
        assert client.post("/pause_generation").status_code == 200
        replies: list[httpx.Response] = []
        body = {"sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}
        threads = [
            threading.Thread(
                target=lambda i=i: replies.append(
                    httpx.post(
                        f"{pair.url}/generate", json=body | {"text": f"{i}", "rid": f"r{i}"}, timeout=60, trust_env=False
                    )
                )
            )
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: bool(client.post("/abort_request", json={"rid": "r1"})) and len(replies) == 1)  # once it has come
        time.sleep(0.5)
        assert len(replies) == 1, "nothing is generated"
        assert client.post("/continue_generation").status_code == 200
        wait_for(lambda: bool(client.post("/abort_request", json={"abort_all": True})) and len(replies) == 4)
        for thread in threads:
            thread.join(60)
        assert len(replies) == 4


def test_a_scheduler_whose_model_has_changed_is_not_let_in(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["alpha"], folder)
    server = start_server(tmp_path / "log", "--replicas", "2", *SEED, model=str(folder))
    try:
        body = {"text": "a", "sampling_params": {"max_new_tokens": 20, "temperature": 0}}
        expected = httpx.post(f"{server.url}/generate", json=body, timeout=60, trust_env=False).json()["text"]
        shutil.copy(models["beta"] / "model.safetensors", folder / "model.safetensors")
        os.kill(schedulers(server)[0], signal.SIGKILL)
        wait_for(lambda: "have changed since the server was started" in server.log.read_text())
        for _ in range(4):
            assert httpx.post(f"{server.url}/generate", json=body, timeout=60, trust_env=False).json()["text"] == expected
    finally:
        end_process(server.process)


def test_embedding_models_are_refused(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="--replicas: models that embed run on one scheduler"):
        start_server(tmp_path / "log", "--replicas", "2", "--is-embedding", *SEED, model=str(models["alpha"]))
