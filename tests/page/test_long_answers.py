"""Long answers: the page stays responsive while they come, its memory is bounded, and they can be stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RunningServer, start_server
from tests.page.conftest import SLOWED, TOY, Chat, wait_for
from tests.page.long_context import write_long_context_model
from tests.page.test_look import show_answer

LATE_MS = 1000 * SLOWED
"""a key that is pressed is seen by then, also on a busy machine"""
MAX_HEAP_BYTES = 64 << 20
MAX_DOM_NODES = 100_000
LISTEN = """() => { window.lags = []; document.querySelector('.composer textarea').addEventListener('keydown', (event) =>
    requestAnimationFrame(() => setTimeout(() => window.lags.push(performance.now() - event.timeStamp)))); }"""


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Says 30,000 tokens if it is told to: words and signs without a paragraph."""
    folder = tmp_path_factory.mktemp("endless")
    model = write_long_context_model(folder / "model", TOY)
    running = start_server(folder / "log", "--random-seed", "1", model=str(model))
    yield running
    running.process.terminate()
    running.process.wait(30)


def metrics(page: Page) -> dict[str, float]:
    """What the browser says of the tab's memory, without what is to be collected."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    return found


def begin(page: Page, url: str, num_tokens: int, view: str) -> Chat:
    """An answer of so many tokens is on its way."""
    chat = Chat(page, url)
    page.get_by_role("button", name=view, exact=True).click()
    chat.talk_on(max_tokens=num_tokens)
    chat.say("Go on.", wait=False)
    page.evaluate(LISTEN)
    return chat


def type_meanwhile(page: Page, seconds: float) -> list[float]:
    """Types into the composer until the answer is complete. Returns how late each key was seen, in ms."""
    area = page.get_by_role("textbox", name="Message", exact=True)
    deadline = time.monotonic() + seconds
    num_keys = 0
    while page.locator(".message[aria-busy=true]").count():
        assert time.monotonic() < deadline, "the answer does not end"
        area.press("x")
        num_keys += 1
        page.wait_for_timeout(200)
    wait_for(lambda: page.evaluate("() => window.lags.length") == num_keys)
    assert area.input_value() == "x" * num_keys
    lags: list[float] = page.evaluate("() => window.lags")
    return sorted(lags)


def check_long_answer(page: Page, server: RunningServer, num_tokens: int, view: str, seconds: float) -> None:
    begin(page, server.url, num_tokens, view)
    lags = type_meanwhile(page, seconds)
    expect(page.locator(".stats")).to_contain_text("tokens/s")
    after = metrics(page)
    high = lags[int(len(lags) * 0.95)]
    print(
        f"{num_tokens} tokens as {view}: keys late by {lags[len(lags) // 2]:.0f} ms, 95 % {high:.0f}, worst {lags[-1]:.0f};",
        end=" ",
    )
    print(
        f"heap {after['JSHeapUsedSize'] / 2**20:.1f} MiB, {after['Nodes']:.0f} nodes; {page.locator('.stats').inner_text()!r}"
    )
    assert high < LATE_MS
    assert after["JSHeapUsedSize"] < MAX_HEAP_BYTES


@pytest.mark.parametrize("view", ["Text", "Tokens"])
def test_the_page_stays_responsive(page: Page, endless: RunningServer, view: str) -> None:
    check_long_answer(page, endless, 3000, view, 120)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["Text", "Origins"])
def test_the_page_stays_responsive_for_30_000_tokens(page: Page, endless: RunningServer, view: str) -> None:
    check_long_answer(page, endless, 30_000, view, 500)
    assert metrics(page)["Nodes"] < MAX_DOM_NODES


def test_a_long_answer_is_stopped(page: Page, endless: RunningServer) -> None:
    chat = begin(page, endless.url, 30_000, "Text")
    wait_for(lambda: len(chat.answer) > 3000, 60)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".stats")).to_contain_text("stopped")
    wait_for(lambda: httpx.get(f"{endless.url}/get_load", trust_env=False).json()[0]["num_reqs"] == 0)
    length = len(chat.answer)
    page.reload()
    page.locator(".kept .entry").first.click()
    assert len(chat.answer) == length, "what had come is kept"


def test_a_long_answer_of_many_blocks(page: Page, endless: RunningServer) -> None:
    """30,000 tokens of Markdown, as they come from a fast server."""
    chat = Chat(page, endless.url)
    text = "".join(f"{i}. The *number* {i} has a [square](http://example.org/{i}) of `{i * i}`.\n\n" for i in range(1, 1500))
    show_answer(page, text)
    began = time.monotonic()
    chat.say("Tell me of squares.")
    expect(page.locator(".markdown")).to_contain_text("The number 1499 has")
    print("a long answer, s:", time.monotonic() - began, "characters:", len(text))
    assert page.locator(".markdown li").count() == 1499
