"""Adapters behind a real server: by name on every API, loaded and unloaded while requests run, after a crash."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

import sglang as sgl
from tests.conftest import RunningServer, start_server
from tests.server.adapter_files import write_adapter

BASE = "smollm2-135m-instruct"
USER, ADMIN = "user-key", "admin-key"
TEXT = "The capital of France is"
CALL = [1813, 338]  # tokens that call the activated adapter


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for i, name in enumerate(("a", "b", "c")):
        write_adapter(folder / name, i)
    write_adapter(folder / "called", 7, alora_invocation_tokens=CALL)
    write_adapter(folder.parent / "outside", 9)
    (folder / "link").symlink_to(folder.parent / "outside")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copytree(folder / "c", folder / f"linked-{name}")
        (folder / f"linked-{name}" / name).unlink()
        (folder / f"linked-{name}" / name).symlink_to(folder.parent / "outside" / name)
    return folder


@pytest.fixture(scope="module")
def adapted(root: Path) -> Iterator[RunningServer]:
    paths = [f"{name}={root / name}" for name in ("a", "b", "called")]
    flags = [
        "--random-seed",
        "1",
        "--api-key",
        USER,
        "--admin-api-key",
        ADMIN,
        "--lora-root",
        str(root),
        "--lora-paths",
        *paths,
    ]
    running = start_server(root.parent / "log", *flags, "--max-loras-per-batch", "2", "--max-total-tokens", "1024")
    yield running
    running.process.terminate()
    running.process.wait(30)


def client_of(server: RunningServer, key: str = USER) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, timeout=120, trust_env=False, headers=headers)


@pytest.fixture()
def user(adapted: RunningServer) -> Iterator[httpx.Client]:
    with client_of(adapted) as client:
        yield client


@pytest.fixture()
def admin(adapted: RunningServer) -> Iterator[httpx.Client]:
    with client_of(adapted, ADMIN) as client:
        yield client


def generate(client: httpx.Client, adapter: Any, text: Any = TEXT, num: int = 10, **more: Any) -> Any:
    params = {"temperature": 0, "max_new_tokens": num, "ignore_eos": True}
    reply = client.post("/generate", json={"text": text, "sampling_params": params, "lora_path": adapter, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def scores(reply: dict[str, Any]) -> Any:
    return reply["meta_info"]["output_token_logprobs"]


def test_every_api_names_adapters(adapted: RunningServer, user: httpx.Client) -> None:
    texts = {name: generate(user, name)["text"] for name in (None, "a", "b")}
    assert len(set(texts.values())) == 3
    client = openai.OpenAI(base_url=f"{adapted.url}/v1", api_key=USER, timeout=120, max_retries=0)
    for model, name in (("a", "a"), (f"{BASE}:b", "b"), ("default:b", "b"), (BASE, None), ("default", None)):
        reply = client.completions.create(
            model=model, prompt=TEXT, max_tokens=10, temperature=0, extra_body={"ignore_eos": True}
        )
        assert (reply.choices[0].text, reply.model) == (texts[name], model)
    turns: list[Any] = [{"role": "user", "content": "Name a colour."}]
    answers = {}
    for model in (BASE, "a", f"{BASE}:a"):
        chat = client.chat.completions.create(model=model, messages=turns, max_tokens=8, temperature=0)
        response = client.responses.create(model=model, input="Name a colour.", max_output_tokens=16, temperature=0)
        body = {"model": model, "max_tokens": 8, "temperature": 0, "messages": turns}
        message = user.post("/v1/messages", json=body).json()
        answers[model] = (chat.choices[0].message.content, response.output_text, message["content"][0]["text"])
    assert answers["a"] == answers[f"{BASE}:a"]
    assert all(one != other for one, other in zip(answers[BASE], answers["a"], strict=True))
    both = client.completions.create(
        model=BASE, prompt=TEXT, max_tokens=10, temperature=0, extra_body={"lora_path": "a", "ignore_eos": True}
    )
    assert both.choices[0].text == texts["a"]

    @sgl.function
    def program(s: Any) -> None:
        s += TEXT + sgl.gen("x", max_tokens=10, temperature=0, ignore_eos=True, lora="b")

    backend = sgl.RuntimeEndpoint(adapted.url, api_key=USER)
    assert program.run(backend=backend)["x"] == texts["b"]


def test_choices_and_labels_are_scored_by_the_adapter(adapted: RunningServer, user: httpx.Client) -> None:
    """As /generate scores the same texts; an unknown adapter does not end the route for later choices."""
    choices = [" Paris", " Rome", " a city", " not"]

    def by_generate(adapter: str | None) -> list[float]:
        params = {"max_new_tokens": 0, "temperature": 0}
        body = {"text": [TEXT + choice for choice in choices], "sampling_params": params, "return_logprob": True}
        replies = user.post("/generate", json={**body, "logprob_start_len": 0, "lora_path": adapter}).json()
        return [reply["meta_info"]["input_token_logprobs"][-1][0] for reply in replies]

    backend = sgl.RuntimeEndpoint(adapted.url, api_key=USER)
    found, alone = {}, {}
    for name in (None, "a", "b"):
        body = {"text": TEXT, "choices": choices, "unconditional": True}
        reply = user.post("/score_choices", json={**body, "lora_path": name}).json()["choices"]
        found[name] = by_generate(name)
        assert [one["token_logprobs"][-1][0] for one in reply] == found[name]
        alone[name] = str([one["unconditional_token_logprobs"] for one in reply])
    assert len(set(map(tuple, found.values()))) == len(set(alone.values())) == 3

    @sgl.function
    def in_run(s: Any) -> None:
        s += TEXT + sgl.select("x", choices, choices_method=sgl.greedy_token_selection)

    @sgl.function
    def in_gen(s: Any, name: str) -> None:
        s += TEXT + sgl.gen("x", choices=choices, lora=name, choices_method=sgl.token_length_normalized)

    for name in ("a", "b"):
        meta = in_gen.run("a" if name == "b" else "b", backend=backend, lora=name).get_meta_info("x")
        other = "a" if name == "b" else "b"
        got = [row[-1][0] for row in meta["input_token_logprobs"]]
        assert got == found[other], "the gen's own adapter wins over the run's"
        meta = in_run.run(backend=backend, lora=name).get_meta_info("x")
        assert [row[-1][0] for row in meta["input_token_logprobs"]] == found[name]
    with pytest.raises(sgl.lang.errors.RequestRefusedError, match="no adapter 'z'"):
        in_run.run(backend=backend, lora="z")["x"]
    assert backend._can_score_choices
    ids = user.post("/tokenize", json={"text": " Paris"}).json()["tokens"]
    rows = {}
    for fields in ({}, {"model": "a"}, {"lora_path": "a"}, {"model": f"{BASE}:b"}):
        body = {"query": TEXT, "items": "", "label_token_ids": ids[:1], **fields}
        rows[str(fields)] = user.post("/v1/score", json=body).json()["scores"]
    assert len({str(row) for row in rows.values()}) == 3 and rows["{'model': 'a'}"] == rows["{'lora_path': 'a'}"]
    assert user.post("/v1/score", json={**body, "model": "caled"}).status_code == 404


def test_documents_are_ranked_by_the_adapter(user: httpx.Client) -> None:
    def ranked(**fields: str) -> Any:
        reply = user.post("/v1/rerank", json={"query": "ship", "documents": ["a boat at sea", "bread"], **fields})
        return [document["score"] for document in reply.json()] if reply.status_code == 200 else reply.status_code

    assert ranked() == ranked(model=BASE) and ranked(model="a") == ranked(model=f"{BASE}:a")
    assert len({str(ranked(model=name)) for name in (BASE, "a", "b")}) == 3 and ranked(model="caled") == 404


def test_models_are_listed_with_their_parent(adapted: RunningServer, user: httpx.Client) -> None:
    cards = {card["id"]: card["parent"] for card in user.get("/v1/models").json()["data"]}
    assert cards == {BASE: None, "a": BASE, "b": BASE, "called": BASE}
    assert user.get("/v1/models/a").json()["parent"] == BASE and user.get("/v1/models/z").status_code == 404


def test_unknown_names_are_not_the_base_model(user: httpx.Client) -> None:
    body = {"text": TEXT, "lora_path": "caled"}
    reply = user.post("/generate", json=body)
    assert reply.status_code == 404 and "did you mean 'called'" in reply.text
    for model in ("caled", f"{BASE}:caled", "default:caled"):
        reply = user.post("/v1/completions", json={"model": model, "prompt": TEXT})
        error = reply.json()["error"]
        assert reply.status_code == 404 and error["code"] == "model_not_found" and "'called'" in error["message"], model
    reply = user.post("/v1/messages", json={"model": "caled", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}]})
    assert reply.status_code == 404 and reply.json()["error"]["type"] == "not_found_error"
    reply = user.post("/v1/completions", json={"model": "a", "lora_path": "b", "prompt": TEXT})
    assert reply.status_code == 400 and "give one of them" in reply.text


def test_the_base_model_answers_with_the_same_bits(user: httpx.Client, http: httpx.Client) -> None:
    """As a server without adapters: alone, and beside adapted rows."""
    plain = scores(generate(http, None, return_logprob=True))
    assert scores(generate(user, None, return_logprob=True)) == plain
    mixed = generate(user, [None, "a", "b", None], [TEXT] * 4, return_logprob=True)
    assert scores(mixed[0]) == scores(mixed[3]) == plain
    for reply, name in zip(mixed[1:3], "ab", strict=True):
        alone = generate(user, name, return_logprob=True)
        assert scores(reply) == scores(alone) != plain


def test_more_adapters_than_slots_at_once(user: httpx.Client, admin: httpx.Client) -> None:
    assert admin.post("/load_lora_adapter", json={"lora_name": "c", "lora_path": "c"}).json()["loaded_adapters"]["c"]
    names = ["a", "b", "c", None] * 4
    alone = {name: generate(user, name)["text"] for name in set(names)}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda name: generate(user, name)["text"], names))
    assert texts == [alone[name] for name in names]
    assert admin.post("/v1/unload_lora_adapter", json={"lora_name": "c"}).status_code == 200


def test_an_activated_adapter_finds_the_base_models_prefix(user: httpx.Client) -> None:
    text = "A long story about a ship that sails around the world and comes home again. " * 4
    ids = user.post("/tokenize", json={"text": text}).json()["tokens"]
    params = {"temperature": 0, "max_new_tokens": 8}

    def ask(ids: list[int], adapter: str | None) -> Any:
        return user.post("/generate", json={"input_ids": ids, "sampling_params": params, "lora_path": adapter}).json()

    base, called = ask(ids, None), ask([*ids, *CALL], "called")
    assert called["meta_info"]["cached_tokens"] >= len(ids) - 1
    plain = ask([*ids, *CALL], None)
    assert called["text"] != plain["text"] and ask(ids, "called")["text"] == base["text"]
    assert ask([*ids, *CALL], "called")["text"] == called["text"]


def test_only_the_operator_loads_and_only_from_below_the_root(user: httpx.Client, admin: httpx.Client, root: Path) -> None:
    body = {"lora_name": "x", "lora_path": "c"}
    for path in ("/load_lora_adapter", "/v1/load_lora_adapter", "/unload_lora_adapter", "/v1/unload_lora_adapter"):
        assert user.post(path, json=body if "un" not in path else {"lora_name": "a"}).status_code in (401, 403)
    outside, linked = str(root.parent / "outside"), [path.name for path in root.glob("linked-*")]
    assert len(linked) == 2
    for path in ("../outside", outside, "link", "c/../../outside", "/etc", "none", "c\0", "~", "", *linked):
        reply = admin.post("/load_lora_adapter", json={"lora_name": "x", "lora_path": path})
        assert reply.status_code == 400, path
        assert "outside" not in reply.json()["error"]["message"].replace(path, ""), path
    for name in ("a", BASE, "default", "x:y", "", "n" * 300, "x\n", "x ", " a"):
        assert admin.post("/load_lora_adapter", json={"lora_name": name, "lora_path": "c"}).status_code == 400, name
    assert admin.post("/unload_lora_adapter", json={"lora_name": "none"}).status_code == 404
    assert {card["id"] for card in user.get("/v1/models").json()["data"]} == {BASE, "a", "b", "called"}


def test_a_server_without_a_root_says_what_to_do(http: httpx.Client) -> None:
    reply = http.post("/load_lora_adapter", json={"lora_name": "x", "lora_path": "c"})
    assert reply.status_code == 400 and "--lora-root" in reply.text
    reply = http.post("/v1/completions", json={"model": f"{BASE}:x", "prompt": TEXT})
    assert reply.status_code == 400 and "--lora-paths" in reply.text


def test_adapters_outlive_a_scheduler(adapted: RunningServer, user: httpx.Client, admin: httpx.Client) -> None:
    """One that was loaded later is there again, and the request that was running goes on with it."""
    assert admin.post("/v1/load_lora_adapter", json={"lora_name": "late", "lora_path": "c"}).status_code == 200
    whole = generate(user, "late", num=120)["text"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(generate, user, "late", TEXT, 120)
        time.sleep(0.1)
        os.kill(adapted.scheduler(), signal.SIGKILL)
        assert running.result(60)["text"] == whole
    assert generate(user, "late", num=120)["text"] == whole
    assert admin.post("/unload_lora_adapter", json={"lora_name": "late"}).status_code == 200


def test_unloading_is_undone_by_a_crash(adapted: RunningServer, user: httpx.Client, admin: httpx.Client) -> None:
    """Its caller is told, the running request goes on, and the adapter can be unloaded then."""
    assert admin.post("/load_lora_adapter", json={"lora_name": "late", "lora_path": "c"}).status_code == 200
    whole = generate(user, "late", num=300)["text"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(generate, user, "late", TEXT, 300)
        time.sleep(0.1)
        unloading = pool.submit(admin.post, "/unload_lora_adapter", json={"lora_name": "late"})
        while generate_status(user, "late") == 200:
            pass
        reply = admin.post("/load_lora_adapter", json={"lora_name": "late", "lora_path": "c"})
        assert running.done() or "is being unloaded" in reply.text
        os.kill(adapted.scheduler(), signal.SIGKILL)
        assert running.result(60)["text"] == whole and unloading.result(60).status_code == 503
    assert generate(user, "late", num=10)["text"]
    assert admin.post("/unload_lora_adapter", json={"lora_name": "late"}).status_code == 200
    assert admin.post("/load_lora_adapter", json={"lora_name": "late", "lora_path": "c"}).status_code == 200
    assert admin.post("/unload_lora_adapter", json={"lora_name": "late"}).status_code == 200


def generate_status(client: httpx.Client, adapter: str) -> int:
    params = {"max_new_tokens": 1}
    return client.post("/generate", json={"text": TEXT, "sampling_params": params, "lora_path": adapter}).status_code


def load_under_traffic(adapted: RunningServer, seconds: float) -> None:
    """An adapter is loaded and unloaded over and over while requests of it, of others and of the base run. Nothing is lost, nothing is
    wrong, and memory stays flat."""
    with client_of(adapted) as user, client_of(adapted, ADMIN) as admin:
        admin.post("/load_lora_adapter", json={"lora_name": "c", "lora_path": "c"})
        texts = [f"{TEXT} {i}" for i in range(4)]
        wanted = {(name, text): generate(user, name, text)["text"] for name in (None, "a", "c") for text in texts}
        admin.post("/unload_lora_adapter", json={"lora_name": "c"})
        end, counts, failures = time.monotonic() + seconds, {None: 0, "a": 0, "c": 0}, []

        def ask(number: int) -> None:
            for i in itertools.count(number):
                if time.monotonic() > end:
                    return
                name, text = [None, "a", "c"][i % 3], texts[i % 4]
                params = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}
                reply = user.post("/generate", json={"text": text, "sampling_params": params, "lora_path": name})
                if reply.status_code == 200 and reply.json()["text"] == wanted[name, text]:
                    counts[name] += 1
                elif not (name == "c" and reply.status_code == 404):
                    failures.append((name, reply.status_code, reply.text))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        process, sizes = psutil.Process(adapted.scheduler()), []
        while time.monotonic() < end:
            assert admin.post("/load_lora_adapter", json={"lora_name": "c", "lora_path": "c"}).status_code == 200
            time.sleep(0.15)
            assert admin.post("/unload_lora_adapter", json={"lora_name": "c"}).status_code == 200
            sizes.append(process.memory_info().rss)
        for thread in threads:
            thread.join(120)
        assert not failures and min(counts.values()) > 0, (failures[:3], counts)
        half = len(sizes) // 2  # the KV pool, 24 MB, fills with what unloaded adapters have left, until that is evicted
        assert len(sizes) > 2 and max(sizes[half:]) < max(sizes[:half]) + (64 << 20), [size >> 20 for size in sizes]


def test_loading_under_traffic(adapted: RunningServer) -> None:
    load_under_traffic(adapted, 20.0)


@pytest.mark.slow
def test_loading_under_traffic_for_two_minutes(adapted: RunningServer) -> None:
    """`pytest -m slow tests/server/test_adapters.py`"""
    load_under_traffic(adapted, 120.0)
