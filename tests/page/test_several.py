"""Adapters, replicas and several models on the page."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from sglang.common.server_process import end_process
from tests.cluster.conftest import SEED, make_model, start_several
from tests.conftest import RunningServer, start_server
from tests.page.conftest import SHOTS, Chat, Troubles, look, wait_for
from tests.page.test_look import serious
from tests.page.test_request_code import CALLS, check, pick, run_program, texts_of
from tests.server.adapter_files import write_adapter

BASE = "smollm2-135m-instruct"
TREES = """async () => { const { replicas } = await import('/page/js/machine/live.js');
    return [...replicas].sort().map(([number, { nodes }]) => [number, [...nodes.values()].map((node) => node.text).sort()]); }"""


def post(server: RunningServer, path: str, body: Any) -> Any:
    reply = httpx.post(f"{server.url}{path}", json=body, timeout=120, trust_env=False).raise_for_status()
    return reply.json() if "json" in reply.headers["content-type"] else reply.text


# --- adapters -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("poet", "sql")):
        write_adapter(root / name, seed)
    running = start_server(root / "log", "--random-seed", "1", "--lora-root", str(root), "--lora-paths", f"poet={root}/poet")
    yield running
    running.process.terminate()
    running.process.wait(30)


def choose(page: Page, name: str) -> None:
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Model", exact=True).select_option(name)
    page.get_by_role("button", name="Done").click()
    expect(page.locator(".model")).to_have_text(name)


def test_adapters_are_models_to_choose(adapted: RunningServer, page: Page) -> None:
    """What the page gets is what the adapter says, and so does the code that it shows."""
    chat = Chat(page, adapted.url)
    chat.option(temperature=0, max_tokens=12)
    question = "Name a colour."
    said = {}
    for name, adapter in ((BASE, None), (f"{BASE}:poet", "poet")):
        choose(page, name)
        page.get_by_role("button", name="New conversation").click()
        with page.expect_response("**/v1/chat/completions") as asked:
            chat.say(question)
        assert json.loads(asked.value.request.post_data or "")["model"] == name
        body = {**json.loads(asked.value.request.post_data or ""), "model": adapter or BASE, "stream": False}
        body.pop("stream_options")
        said[name] = post(adapted, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
        kept = page.evaluate(
            """async () => { const { current, pathTo } = await import('/page/js/chat/conversations.js');
                return pathTo(current.value).at(-1).content; }"""
        )
        assert kept == said[name]
        page.get_by_role("button", name="The request as code").click()
        page.get_by_role("tab", name="sglang").click()
        code = page.locator(".request-code code")
        (expect(code).to_contain_text if adapter else expect(code).not_to_contain_text)('lora="poet"')
        page.keyboard.press("Escape")
    assert len(set(said.values())) == 2


def test_the_code_of_a_call_names_its_adapter(
    adapted: RunningServer, context: BrowserContext, page: Page, tmp_path: Path
) -> None:
    """Of what an adapter generated, and of what it chose; its answer is the one that the model itself does not give."""
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    look(page, adapted.url, "programs")
    code = f"""import sglang as sgl
sgl.set_default_backend(sgl.RuntimeEndpoint({adapted.url!r}))

@sgl.function
def verse(s):
    s += "A colour is" + sgl.gen("colour", max_tokens=6, temperature=1.5, stop=["\\n"])
    s += sgl.select("end", choices=[" and blue", ", or so", "."])

verse.run(lora="poet").sync()
verse.run().sync()
"""
    run_program(code, SGLANG_TRACE="server")
    wait_for(
        lambda: len(page.evaluate(CALLS)) == 2 and all(call["ended"] for _, calls in page.evaluate(CALLS) for call in calls)
    )
    run, calls = page.evaluate(CALLS)[0]
    page.get_by_role("group", name="Runs").get_by_role("button", name=f"run {run[:6]}").click()
    for call in calls:
        pick(page, call["name"])
        check(texts_of(page, tmp_path), call)


def test_adapters_that_come_and_go_are_seen_in_the_options(adapted: RunningServer, page: Page) -> None:
    Chat(page, adapted.url)
    post(adapted, "/load_lora_adapter", {"lora_name": "late", "lora_path": "sql"})
    choose(page, f"{BASE}:late")
    post(adapted, "/unload_lora_adapter", {"lora_name": "late"})
    page.get_by_role("button", name="Options").click()
    expect(page.get_by_label("Model", exact=True).locator("option")).to_have_text([BASE, f"{BASE}:poet"])
    assert serious(page) == []
    page.get_by_role("button", name="Done").click()
    expect(page.locator(".model")).to_have_text(BASE)


# --- replicas -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: make_model(root / name, seed) for seed, name in enumerate(("alpha", "beta"))}


@pytest.fixture
def doubled(tiny: dict[str, Path], tmp_path: Path) -> Iterator[RunningServer]:
    running = start_server(tmp_path / "log", "--replicas", "2", "--served-model-name", "alpha", *SEED, model=str(tiny["alpha"]))
    yield running
    end_process(running.process, 30)


def test_every_replica_is_seen(doubled: RunningServer, page: Page) -> None:
    page.goto(f"{doubled.url}/#machine")
    table = page.get_by_role("region", name="Replicas", exact=True).locator("tbody tr")
    expect(table).to_have_count(2)
    post(doubled, "/flush_cache", {})  # the first request was the server's own
    texts = ["a long text that the first one reads " * 3, "other words, which nobody has read before " * 3]
    limits = {"max_new_tokens": 2, "ignore_eos": True, "temperature": 0}
    post(doubled, "/generate", {"text": texts, "sampling_params": limits})  # prompts that nobody knows are spread evenly
    wait_for(lambda: all(nodes for _, nodes in page.evaluate(TREES)))
    trees = dict(page.evaluate(TREES))
    assert {text[:5] for text in texts} == {text[:5] for nodes in trees.values() for text in nodes if text[:5] in "a lonother"}
    for number in (1, 0):
        page.get_by_role("button", name=f"Replica {number + 1}").click()
        expect(table.nth(number)).to_have_class("on")
        expect(page.get_by_role("img", name=re.compile("^[1-9][0-9]* node"))).to_be_visible()
        page.locator(".icicle-box").focus()
        page.keyboard.press("ArrowDown")
        first = next(text for text in texts if text[:5] in [node[:5] for node in trees[number]])
        expect(page.locator(".icicle figcaption code")).to_contain_text(first[:10])
    expect(table.nth(1)).not_to_contain_text("–")
    assert serious(page) == []
    page.locator(".machine").evaluate("(view) => view.scrollTo(0, 0)")
    page.screenshot(path=SHOTS / "replicas.png")


def test_a_replica_that_dies_is_away_until_another_is_there(doubled: RunningServer, page: Page) -> None:
    page.goto(f"{doubled.url}/#machine")
    table = page.get_by_role("region", name="Replicas", exact=True).locator("tbody tr")
    expect(table).to_have_count(2)
    post(
        doubled, "/generate", {"text": ["one two three " * 20, "four five six " * 20], "sampling_params": {"max_new_tokens": 2}}
    )
    wait_for(lambda: all(texts for _, texts in page.evaluate(TREES)))
    pids = [pid for pid in doubled.children() if b"scheduler_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(pids[1], signal.SIGKILL)
    wait_for(lambda: any(not texts for _, texts in page.evaluate(TREES)))
    wait_for(lambda: "away" not in table.nth(0).inner_text() + table.nth(1).inner_text(), 60)
    post(doubled, "/generate", {"text": ["seven " * 60, "eight " * 60], "sampling_params": {"max_new_tokens": 2}})
    wait_for(lambda: all(texts for _, texts in page.evaluate(TREES)))


# --- several models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(tiny: dict[str, Path], tmp_path: Path) -> Iterator[RunningServer]:
    """alpha, in memory with an adapter's name, or beta: one at a time."""
    named = [word for name, path in tiny.items() for word in ("--model", f"{name}={path}")]
    server = start_several(tmp_path / "log", *named, "--max-loaded", "1", "--drain-seconds", "20", *SEED)
    yield server
    end_process(server.process, 40)


def test_several_models_are_chosen_and_looked_at(
    several: RunningServer, context: BrowserContext, page: Page, troubles: Troubles, tmp_path: Path
) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    troubles.expected = ("503",)
    chat = Chat(page, several.url)
    chat.option(max_tokens=8)
    chat.say("a b c")
    assert chat.answer is not None
    page.get_by_role("link", name="Machine").click()
    models = page.get_by_role("group", name="Models").get_by_role("button")
    expect(models).to_have_text(["alpha 0 requests", "beta unloaded"])
    wait_for(lambda: bool(page.evaluate(TREES)[0][1]))
    # the code of a call is for the model that it was of, whichever is chosen
    code = f"""import sglang as sgl
sgl.set_default_backend(sgl.RuntimeEndpoint("{several.url}/models/alpha"))

@sgl.function
def words(s):
    s += "a b c" + sgl.gen("more", max_tokens=4, temperature=0)

words.run().sync()
"""
    run_program(code, SGLANG_TRACE="server")
    wait_for(lambda: bool(page.evaluate(CALLS)) and all(call["ended"] for call in page.evaluate(CALLS)[0][1]))
    run, (call, *_) = page.evaluate(CALLS)[0]
    page.get_by_role("link", name="Programs").click()
    pick(page, "more")
    check(texts_of(page, tmp_path), call)
    # a viewer of alpha does not keep it in memory: beta takes its place
    page.get_by_role("link", name="Chat").click()
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Model", exact=True).select_option("beta")
    expect(page.get_by_text("the first message loads it")).to_be_visible()
    page.get_by_role("button", name="Done").click()
    page.get_by_role("link", name="Machine").click()
    models.nth(0).click()
    wait_for(lambda: bool(page.evaluate(TREES)[0][1]))
    began = time.monotonic()
    body = {"model": "beta", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    post(several, "/v1/chat/completions", body)
    assert time.monotonic() - began < 60
    expect(page.get_by_role("alert")).to_contain_text("'alpha' is not in memory")
    expect(models).to_have_text(["alpha unloaded", "beta 0 requests"])
    page.get_by_role("link", name="Programs").click()
    page.get_by_role("group", name="Runs").get_by_role("button", name=f"run {run[:6]}").click()
    pick(page, "more")
    page.get_by_role("button", name="The request as code").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("'alpha' is not in memory")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Machine").click()
    expect(models).to_have_text(["alpha unloaded", "beta 0 requests"])
    models.nth(1).click()
    expect(page.get_by_role("alert")).to_have_count(0)
    wait_for(lambda: bool(page.evaluate(TREES)[0][1]))
    assert serious(page) == []
    began = time.monotonic()
    several.process.terminate()
    several.process.wait(30)
    assert time.monotonic() - began < 12, "a viewer does not hold up the end"
    troubles.expected = ("503", "ERR_", "Failed to load")


def test_adapters_of_several_models_have_their_models_name(tmp_path: Path, page: Page) -> None:
    """The name in the list is one that requests may use."""
    write_adapter(tmp_path / "poet", 1)
    models = tmp_path / "models.yaml"
    first = f"family/small:\n  model-path: {BASE}\n  lora-paths: [poet={tmp_path}/poet]\n  preload: true\n"
    models.write_text(f"{first}other: {BASE}\n")
    server = start_several(tmp_path / "log", "--models", str(models), "--random-seed", "1")
    try:
        cards = httpx.get(f"{server.url}/v1/models", timeout=60, trust_env=False).json()["data"]
        assert [card["id"] for card in cards] == ["family/small", "family/small:poet", "other"]
        one = httpx.get(f"{server.url}/v1/models/family/small:poet", timeout=60, trust_env=False)
        assert one.json()["parent"] == "family/small"
        chat = Chat(page, server.url)
        chat.option(temperature=0, max_tokens=6)
        choose(page, "family/small:poet")
        chat.say("Name a colour.")
        assert page.locator(".message .error").count() == 0
        page.get_by_role("button", name="The request as code").click()
        page.get_by_role("tab", name="sglang").click()
        expect(page.locator(".request-code code")).to_contain_text("/models/family/small")
        expect(page.locator(".request-code code")).to_contain_text('lora="poet"')
    finally:
        end_process(server.process, 30)


def test_a_page_that_looks_keeps_no_other_model_out(several: RunningServer) -> None:
    """Viewers that never read, for as long as they like."""
    held = threading.Event()
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    post(several, "/v1/chat/completions", {**body, "model": "alpha"})

    def leave_unread() -> None:
        with httpx.stream("POST", f"{several.url}/models/alpha/page/live", json={}, timeout=120, trust_env=False) as reply:
            assert reply.status_code == 200
            held.set()
            time.sleep(20)

    thread = threading.Thread(target=leave_unread, daemon=True)
    thread.start()
    assert held.wait(30)
    for name in ("beta", "alpha", "beta"):
        began = time.monotonic()
        post(several, "/v1/chat/completions", {**body, "model": name})
        assert time.monotonic() - began < 60
    refused = httpx.post(f"{several.url}/models/alpha/page/live", json={}, timeout=60, trust_env=False)
    assert refused.status_code == 503 and "not in memory" in refused.text
    assert httpx.post(f"{several.url}/models/gamma/page/live", json={}, timeout=60, trust_env=False).status_code == 404


def test_names_of_models_and_adapters_are_text(server: RunningServer, page: Page, troubles: Troubles) -> None:
    troubles.expected = ("404",)
    plain, evil = "<img src=x onerror=window.pwned=1>/x?#%00", "a/../../flush_cache"
    cards = [
        {"id": plain, "loaded": False},
        {"id": f"{plain}:a", "parent": plain, "loaded": True},
        {"id": evil, "loaded": True},
    ]
    states = [{"name": name, "state": plain, "requests": 1} for name in (plain, evil)]
    asked: list[str] = []

    def info(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(json={"sampling_defaults": {}})

    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [*cards, {"id": "b", "parent": {"a": 1}}]}))
    page.route("**/get_model_info", info)
    page.route(f"{server.url}/models", lambda route: route.fulfill(json={"models": states}))
    page.goto(server.url)
    expect(page.locator(".model")).to_have_text(plain)
    choose(page, f"{plain}:a")
    assert asked == [f"{server.url}/models/%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E/x%3F%23%2500/get_model_info"]
    page.on("request", lambda request: asked.append(request.url))
    choose(page, evil)
    page.get_by_role("link", name="Constraints").click()
    page.get_by_role("button", name="Code").click()
    page.get_by_role("link", name="Machine").click()
    page.get_by_role("group", name="Models").get_by_role("button").nth(1).click()
    page.wait_for_timeout(500)
    assert not [address for address in asked if "flush_cache" in address]
    assert page.evaluate("() => window.pwned") is None
