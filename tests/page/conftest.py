"""The page in a real browser: Debian's Chromium, driven by Playwright, on real servers. `make test-page` installs both and runs these
tests; the suite leaves them out."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, RunningServer, start_server

playwright = pytest.importorskip("playwright.sync_api", reason="make test-page installs Playwright")
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SHOTS = ROOT / "docs" / "images" if os.environ.get("PAGE_IMAGES") else Path(tempfile.mkdtemp())
"""the pictures of docs/page.md are made anew with PAGE_IMAGES=1; otherwise nothing in the tree changes"""
SLOWED = int(os.environ.get("PAGE_SLOWED", "1"))
"""Tabs compute so much more slowly: what a test takes for granted too early is seen (PAGE_SLOWED=6)."""
TOY = ROOT / "models" / "toy-vlm"

expect.set_options(timeout=20_000 * max(SLOWED // 2, 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.page)


def slow_down(browser: Browser) -> None:
    """All tabs get their share of the processor."""

    def slowed(page: Page) -> Page:
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWED})
        return page

    def new_context(**options: Any) -> BrowserContext:
        context = make_context(**options)
        make_page = context.new_page
        context.new_page = lambda: slowed(make_page())  # type: ignore[method-assign]
        return context

    make_context = browser.new_context
    browser.new_context = new_context  # type: ignore[method-assign]
    browser.new_page = lambda **options: new_context(**options).new_page()  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail("there is no Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
        )
        if SLOWED > 1:
            slow_down(browser)
        yield browser
        browser.close()


class Troubles(list[str]):
    """What the browser complained of. `expected`: what a test provokes."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: tuple[str, ...] = ()

    def unexpected(self) -> list[str]:
        return [trouble for trouble in self if not any(part in trouble for part in self.expected)]


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    yield context
    context.close()


@pytest.fixture
def troubles() -> Troubles:
    return Troubles()


@pytest.fixture
def page(context: BrowserContext, troubles: Troubles) -> Iterator[Page]:
    """A tab. At the end of a test nothing may have failed in it that the test did not expect."""
    page = context.new_page()
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    yield page
    assert troubles.unexpected() == []


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("vision") / "log", model=str(TOY))
    yield running
    running.process.terminate()
    running.process.wait(30)


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a key for clients, "user-key", and one for the operator, "root-key"."""
    running = start_server(tmp_path_factory.mktemp("keyed") / "log", "--api-key", "user-key", "--admin-api-key", "root-key")
    yield running
    running.process.terminate()
    running.process.wait(30)


def wait_for(found: Callable[[], bool], seconds: float = 20.0) -> None:
    """Asks again and again. The page's policy lets no test run code of its own there for that."""
    deadline = time.monotonic() + seconds * max(SLOWED // 2, 1)
    while not found():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def look(page: Page, url: str, view: str) -> None:
    """Opens the view of the machine or of programs. What happens from now on is on view."""
    page.goto(f"{url}/#{view}")
    expect(page.locator(f".{view}")).to_be_visible()
    wait_for(lambda: bool(page.evaluate("async () => (await import('/page/js/machine/live.js')).live.value.connected")))


class Chat:
    """The chat as a user handles it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        page.goto(url)
        page.wait_for_selector(".composer")
        expect(page.locator(".empty h2")).not_to_have_text("…")

    def option(self, **values: object) -> None:
        self.page.get_by_role("button", name="Options").click()
        for name, value in values.items():
            self.page.locator(f"#option-{name}").fill(str(value))
            self.page.locator(f"#option-{name}").blur()
        self.page.get_by_role("button", name="Done").click()

    def talk_on(self, **more: object) -> None:
        """Lets answers go on until they are stopped, or as `more` says: the model's own end depends on the last bit."""

        def changed(route: Route) -> None:
            route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True, **more})

        self.page.route("**/v1/chat/completions", changed)

    def say(self, text: str, wait: bool = True) -> None:
        self.page.get_by_role("textbox", name="Message", exact=True).fill(text)
        with self.answering() if wait else contextlib.nullcontext():
            self.page.keyboard.press("Enter")

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Waits until the answer that begins inside is complete."""
        with self.page.expect_request_finished(lambda request: request.url.endswith("/chat/completions"), timeout=60_000):
            yield
        expect(self.page.locator(".message[aria-busy=true]")).to_have_count(0)

    def delete(self, name: str) -> None:
        """Deletes a conversation, and says that this is meant."""
        self.page.get_by_role("button", name=f"Delete {name}").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()

    @property
    def answer(self) -> str:
        return self.page.locator(".message.assistant").last.locator(".markdown").last.inner_text()
