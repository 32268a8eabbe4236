"""The machine on view: the tree is the cache's own, whatever its size; who may look; what it costs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import RunningServer, start_server
from tests.page.conftest import SHOTS, look, wait_for
from tests.page.test_look import serious

NODES = """async () => { const { nodes } = await import('/page/js/machine/live.js');
    return [...nodes.values()].map((node) => [node.start, node.length, node.locked, node.hits, node.text]); }"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("machine") / "log", "--random-seed", "1")
    yield running
    running.process.terminate()
    running.process.wait(30)


def ask(url: str, text: str, **params: Any) -> dict[str, Any]:
    body = {"text": text, "sampling_params": {"temperature": 0, "max_new_tokens": 4} | params}
    reply: dict[str, Any] = httpx.post(f"{url}/generate", json=body, timeout=60, trust_env=False).json()
    return reply


def test_the_tree_after_two_requests_is_the_cache_s(fresh: RunningServer, page: Page) -> None:
    httpx.post(f"{fresh.url}/flush_cache", json={}, trust_env=False)
    look(page, fresh.url, "machine")
    first = ask(fresh.url, "The quick brown fox jumps over the lazy dog, and then it sleeps")
    second = ask(fresh.url, "The quick brown fox jumps over the fence, and then it runs")
    shared = second["meta_info"]["cached_tokens"]
    wait_for(lambda: len(page.evaluate(NODES)) == 5)
    nodes = sorted(page.evaluate(NODES))
    prompts = [answer["meta_info"]["prompt_tokens"] for answer in (first, second)]
    ends = [prompt + len(answer["output_ids"]) - 1 for prompt, answer in zip(prompts, (first, second), strict=True)]
    assert nodes[0][:2] == [0, shared] and nodes[0][4] == "The quick brown fox jumps over the"
    assert sorted(start + length for start, length, *_ in nodes[1:]) == sorted(prompts + ends)
    assert [node[2] for node in nodes] == [False] * 5
    assert nodes[0][3] >= 1, "the second request found the first one's beginning"
    expect(page.get_by_role("img", name="5 nodes")).to_be_visible()
    httpx.post(f"{fresh.url}/flush_cache", json={}, trust_env=False)
    wait_for(lambda: page.evaluate(NODES) == [])


def test_what_runs_is_seen(fresh: RunningServer, browser: Browser) -> None:
    for scheme in ("light", "dark"):
        httpx.post(f"{fresh.url}/flush_cache", json={}, trust_env=False)
        context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        look(page, fresh.url, "machine")
        system = "You are a careful assistant. Answer every question in one short sentence. "
        texts = [
            f"{system}{kind} {n}: tell me a fact about the number {n}."
            for kind in ("Question", "Riddle", "Task")
            for n in range(6)
        ]
        httpx.post(
            f"{fresh.url}/generate",
            json={"text": texts, "sampling_params": {"max_new_tokens": 60, "ignore_eos": True}},
            timeout=120,
            trust_env=False,
        )
        expect(page.locator(".figure", has_text="Steps")).to_contain_text("a second")
        wait_for(lambda page=page: len(page.evaluate(NODES)) > 15)  # type: ignore[misc]
        page.locator(".icicle-box").focus()
        page.keyboard.press("ArrowDown")
        expect(page.locator(".icicle figcaption")).to_contain_text("You are a careful assistant")
        latencies = page.get_by_role("region", name="Latencies")
        expect(latencies).to_contain_text(re.compile(r"of the last \d+ requests"))
        assert [figure.inner_text().count("s") > 0 for figure in latencies.locator(".figure dd:not(.detail)").all()] == [
            True
        ] * 4
        assert serious(page) == []
        page.screenshot(path=SHOTS / f"machine-{scheme}.png")
        context.close()


def test_a_tree_of_20_000_nodes(fresh: RunningServer, page: Page) -> None:
    """As the server would tell of it."""

    def events() -> str:
        nodes, found = [], []
        for i in range(20_000):
            parent = (i - 1) // 3 + 1 if i else 0
            nodes.append([i + 1, parent, i % 500, 1 + i % 40, i % 7 == 0, i % 3, f"node {i}"])
        for at in range(0, 20_000, 500):
            found.append({"first": at == 0, "nodes": nodes[at : at + 500], "gone": [], "steps": [], "late": 0, "omitted": 7})
        return "".join(f"data: {json.dumps(event)}\n\n" for event in found)

    page.route("**/page/live", lambda route: route.fulfill(body=events(), content_type="text/event-stream"))
    page.goto(f"{fresh.url}/#machine")
    expect(page.get_by_role("img", name="20000 nodes")).to_be_visible()
    expect(page.get_by_text("7 more nodes are not shown")).to_be_visible()
    took = page.evaluate(
        """async () => { const { layout } = await import('/page/js/machine/icicle.js');
            const { nodes } = await import('/page/js/machine/live.js');
            const began = performance.now(); const { boxes } = layout(nodes, 1200, 500); return [performance.now() - began, boxes.length]; }"""
    )
    assert took[1] < 3500, "what is too thin to see is drawn as one"
    print("layout of 20,000 nodes, ms:", took[0])


def test_one_view_is_one_viewer(fresh: RunningServer, page: Page) -> None:
    """It asks once what is on view, and does not begin anew when the page asks again what is served: what happens meanwhile would be lost."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/page/live") else None)
    look(page, fresh.url, "machine")
    page.get_by_role("link", name="Chat").click()
    page.get_by_role("link", name="Programs").click()
    expect(page.locator(".programs")).to_be_visible()
    for _ in range(3):
        page.evaluate("async () => (await import('/page/js/api.js')).loadServer()")
        page.wait_for_timeout(100)
    assert len(asked) == 2, "a request for each view"


def test_who_may_look(keyed: RunningServer, browser: Browser) -> None:
    def status(key: str | None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.stream("POST", f"{keyed.url}/page/live", json={}, headers=headers, trust_env=False) as reply:
            return reply.status_code

    assert [status(None), status("user-key"), status("root-key")] == [401, 401, 200]
    page = browser.new_page()
    page.goto(keyed.url)
    page.get_by_label("Key", exact=True).fill("user-key")
    page.get_by_role("button", name="Use the key").click()
    expect(page.locator("dialog")).to_have_count(0)
    page.get_by_role("link", name="Machine").click()
    expect(page.get_by_role("alert")).to_contain_text("admin key")
    page.close()


def test_a_server_for_all_without_keys_shows_nothing(tmp_path: Path) -> None:
    running = start_server(tmp_path / "log", "--host", "0.0.0.0")
    try:
        reply = httpx.post(f"{running.url}/page/live", json={}, trust_env=False)
        assert reply.status_code == 403 and "--admin-api-key" in reply.text
        assert httpx.get(running.url, trust_env=False).status_code == 200
    finally:
        running.process.terminate()
        running.process.wait(30)


def test_answers_are_the_same_with_a_viewer_and_the_server_ends(tmp_path: Path, browser: Browser) -> None:
    running = start_server(tmp_path / "log", "--random-seed", "1")
    alone = ask(running.url, "Once upon a time", max_new_tokens=100)
    page = browser.new_page()
    page.goto(f"{running.url}/#machine")
    expect(page.locator(".figure", has_text="Running")).not_to_contain_text("–")
    httpx.post(f"{running.url}/flush_cache", json={}, trust_env=False)
    watched = ask(running.url, "Once upon a time", max_new_tokens=100)
    assert watched["output_ids"] == alone["output_ids"]
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 12, "a viewer does not hold up the end"
    page.close()
