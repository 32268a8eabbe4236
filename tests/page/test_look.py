"""How the page looks and how fast it is there: light and dark, small and large, for those who do not see it, and its size."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, expect

from sglang.srt.server.page.files import PageFiles
from tests.conftest import RunningServer
from tests.page.conftest import SHOTS, Chat

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
SIZES = {"phone": (360, 740), "laptop": (1280, 800), "4K": (3840, 2160)}
ANSWER = """## The quadratic formula

From $ax^2 + bx + c = 0$ with $a \\neq 0$ follows

$$x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}$$

| discriminant | roots |
|:--|--:|
| $b^2 > 4ac$ | two |
| $b^2 = 4ac$ | one |

```python
def roots(a: float, b: float, c: float) -> tuple[float, float]:
    d = (b * b - 4 * a * c) ** 0.5
    return (-b + d) / (2 * a), (-b - d) / (2 * a)
```
"""


def show_answer(page: Page, text: str, reasoning: str = "") -> None:
    """Lets the next answer be `text`, as a server would stream it."""
    pieces = [{"reasoning_content": reasoning}] if reasoning else []
    pieces += [{"content": text[at : at + 20]} for at in range(0, len(text), 20)]
    events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in pieces]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 40, "completion_tokens": 150, "prompt_tokens_details": {"cached_tokens": 31}}
    show_events(page, [*events, {"choices": [], "usage": usage}])


def show_events(page: Page, events: list[dict[str, Any]]) -> None:
    """Lets the next answer be what a server says by these events."""
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serious(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    page.evaluate(AXE)
    found = page.evaluate("() => axe.run()")
    return [
        f"{fault['id']}: {fault['help']}: {[node['html'][:120] for node in fault['nodes']][:3]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


def no_part_is_beyond_the_edge(page: Page) -> bool:
    return bool(page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


@pytest.mark.parametrize("size", SIZES)
def test_a_conversation_at_every_size(browser: Browser, server: RunningServer, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    chat = Chat(page, server.url)
    assert serious(page) == []
    show_answer(page, ANSWER, "The user wants a derivation. I show the formula.")
    chat.say("Derive the quadratic formula, with the formulas in LaTeX.")
    expect(page.locator("math").first).to_be_visible()
    assert page.locator("math[display=block] mfrac").count() == 1
    assert serious(page) == []
    assert no_part_is_beyond_the_edge(page)
    if size == "laptop":
        page.screenshot(path=SHOTS / f"chat-{scheme}.png")
    page.get_by_role("button", name="Options").click()
    assert serious(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="The request as code").click()
    assert serious(page) == [] and no_part_is_beyond_the_edge(page)
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="sglang")).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_contain_text("import sglang as sgl")
    context.close()


WIDE = "| " + " | ".join(f"column {i}" for i in range(14)) + " |\n|" + "--|" * 14 + "\n| " + " | ".join(["value"] * 14) + " |\n"
STYLED = r"""$$\begin{pmatrix} a & b \\ c & d \end{pmatrix} \begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases} \color{red}{x} \boxed{y} \hspace{2em} z$$

$$\begin{aligned} f(x) &= (a + b)^2 \\ &= a^2 + 2ab + b^2 \end{aligned} \qquad \underbrace{x + y}_{n} \; \overline{ab} \; \cancel{z} \; \rule{1em}{1em}$$
"""


def test_what_is_wide_scrolls_by_itself(page: Page, server: RunningServer) -> None:
    """No column is narrower than a word, no style of a formula is against the page's policy (the browser would complain of it)."""
    page.set_viewport_size({"width": 360, "height": 740})
    chat = Chat(page, server.url)
    show_answer(page, f"{WIDE}\n{STYLED}\n```\n{'x = 1; ' * 50}\n```\n\n{'w' * 300}\n")
    chat.say("Show me a table.")
    assert no_part_is_beyond_the_edge(page)
    height, line = page.locator("tbody tr").evaluate(
        "(row) => [row.clientHeight, parseFloat(getComputedStyle(row).lineHeight)]"
    )
    assert height < 2 * line, "a word is not broken into letters"
    assert page.locator("math[display=block] mtable").count() == 3
    assert page.locator(".math-source").count() == 0


def test_a_long_paragraph_looks_like_one(page: Page, server: RunningServer) -> None:
    """It is drawn in pieces, without space between them; so are lists and quotations."""
    chat = Chat(page, server.url)
    for sign, between in (("", " "), ("* ", "\n"), ("> ", "\n")):
        show_answer(page, between.join(f"{sign}word{i}" for i in range(5000)) + "\n\nThe end.")
        chat.say("Go on and on.")
        blocks = page.locator(".message").last.locator(".markdown > .block")
        expect(blocks.last).to_have_text("The end.")
        gaps = blocks.evaluate_all(
            "(all) => all.slice(0, -2).map((one) => getComputedStyle(one.lastElementChild).marginBottom)"
        )
        assert set(gaps) == {"0px"}


def test_many_files_leave_room_to_write(page: Page, server: RunningServer) -> None:
    chat = Chat(page, server.url)
    names = [f"{i}.txt" for i in range(200)] + ["n" * 200]
    files = [{"name": name, "mimeType": "text/plain", "buffer": b"x"} for name in names]
    page.get_by_label("Files", exact=True).set_input_files(files)
    expect(page.locator(".attached li")).to_have_count(len(names))
    page.set_viewport_size({"width": 360, "height": 740})
    for part in (".send", ".composer textarea"):
        expect(page.locator(part)).to_be_in_viewport(ratio=1)
    show_answer(page, "Yes.")
    chat.say("What are these?")
    assert page.locator(".files").evaluate("(box) => [...box.children].every((one) => one.getBoundingClientRect().left >= 0)")


def test_the_view_shown_is_seen_in_the_menu_of_a_phone(page: Page, server: RunningServer) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    Chat(page, server.url)
    for name in ("Machine", "Programs", "Constraints", "Chat"):
        page.get_by_role("link", name=name).click()
        current = page.locator("header nav [aria-current=page]")
        expect(current).to_have_text(name)
        expect(current).to_be_in_viewport(ratio=0.95)
        assert no_part_is_beyond_the_edge(page)
        expect(page.get_by_role("heading", level=1)).to_have_count(1)


def test_the_theme_is_chosen_and_kept(page: Page, server: RunningServer) -> None:
    Chat(page, server.url)

    def ground() -> str:
        return str(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))

    light = ground()
    for name in ("Colours: system", "Colours: light"):
        page.get_by_role("button", name=name).click()
    dark = ground()
    assert dark != light
    page.reload()
    page.wait_for_selector(".composer")
    assert ground() == dark


FOCUSED = """() => { const at = document.activeElement; return (at.getAttribute('aria-label') ?? at.textContent).trim(); }"""


def tab_to(page: Page, name: str, key: str = "Tab") -> None:
    """As who has no mouse."""
    for _ in range(80):
        if page.evaluate(FOCUSED) == name:
            return
        page.keyboard.press(key)
    pytest.fail(f"{name} is not reached by {key}")


def test_the_keyboard_is_enough(page: Page, server: RunningServer) -> None:
    Chat(page, server.url)
    tab_to(page, "Options")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Options")).to_be_visible()
    tab_to(page, "Temperature, slider")
    page.keyboard.press("Home")
    page.keyboard.press("Escape")
    assert page.evaluate(FOCUSED) == "Options", "the focus is given back"
    tab_to(page, "Tokens")
    page.keyboard.press("Enter")
    tab_to(page, "Message")
    page.keyboard.type("What is the capital of France? Answer in one sentence.")
    with page.expect_request_finished(lambda request: request.url.endswith("/chat/completions"), timeout=60_000):
        page.keyboard.press("Enter")
    expect(page.locator("#announcer")).to_have_text("The answer is complete.")
    first = "".join(page.locator(".tokens .token").all_inner_texts())
    tab_to(page, "Tokens of the answer; left and right arrow go through their alternatives")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".alternatives")).to_be_visible()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("() => Boolean(document.activeElement.closest('.alternatives'))"):
            break
    with page.expect_request_finished(lambda request: request.url.endswith("/chat/completions"), timeout=60_000):
        page.keyboard.press("Enter")
    expect(page.locator(".tokens .token.chosen")).to_have_count(1)
    expect(page.locator(".message[aria-busy=true]")).to_have_count(0)
    assert "".join(page.locator(".tokens .token").all_inner_texts()) != first
    for view in ("Constraints", "Programs", "Machine", "Chat"):
        tab_to(page, view, "Shift+Tab")
        page.keyboard.press("Enter")
        expect(page.locator("header nav [aria-current=page]")).to_have_text(view)


def test_everything_is_small(page: Page) -> None:
    files = PageFiles()
    sizes = {path: len(files.named(path).packed) for path in files.paths if "docs" not in path and not path.endswith(".txt")}
    assert sum(sizes.values()) < 250_000, sizes


def test_the_first_paint_waits_for_little() -> None:
    """For the document, styles, and the script that chooses the colours; all modules are asked for by the document itself."""
    files = PageFiles()
    document = gzip.decompress(files.named("/").packed).decode()
    blocking = re.findall(r'<link rel="stylesheet" href="([^"]+)">|<script src="([^"]+)">', document)
    paths = ["/", *(f"/{style or script}" for style, script in blocking)]
    assert len(paths) <= 5
    assert sum(len(files.named(path).packed) for path in paths) < 15_000
    preloaded = {f"/{path}" for path in re.findall(r'<link rel="modulepreload" href="([^"]+)">', document)}
    modules = {path for path in files.paths if path.endswith(".js") and "docs" not in path} - set(paths)
    assert preloaded == modules


def test_nothing_comes_from_elsewhere(page: Page, server: RunningServer) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    Chat(page, server.url)
    assert asked and all(url.startswith((server.url, "data:")) for url in asked)


@pytest.mark.slow
def test_the_first_paint_is_soon(browser: Browser, server: RunningServer) -> None:
    """The best of several, each in a browser that has nothing yet: other work of the machine is not measured."""
    paints = []
    for _ in range(10):
        context = browser.new_context()
        page = context.new_page()
        Chat(page, server.url)
        paints.append(page.evaluate("() => Math.min(...performance.getEntriesByType('paint').map((e) => e.startTime))"))
        context.close()
    print("first paint, ms:", [round(paint) for paint in sorted(paints)])
    assert min(paints) < 300


def test_the_documentation_works_offline(page: Page, server: RunningServer, context: Iterator[object]) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/docs")
    expect(page.locator(".opblock-summary-path").first).to_be_visible()
    assert page.get_by_text("/v1/chat/completions").count() == 1
    assert all(url.startswith((server.url, "data:")) for url in asked)
