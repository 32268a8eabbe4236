"""Files and names from anywhere: conversations, recordings, models, tools, programs. What they say is text; nothing runs, nothing is
asked of other hosts, nothing freezes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RunningServer
from tests.page.conftest import SLOWED, Chat, Troubles, look, wait_for
from tests.page.test_hostile_output import ATTACKS, RUN
from tests.page.test_look import show_answer

EVIL = f"<img src=http://evil.example/x onerror={RUN}><script>{RUN}</script>\u202e\u0000"
SECONDS = 30.0 * max(SLOWED // 2, 1)
"""for what must not freeze the page, on a busy machine"""


@pytest.fixture
def asked(page: Page) -> list[str]:
    """The addresses that the page has asked for, but for images in data URLs."""
    found: list[str] = []
    page.on("request", lambda request: None if request.url.startswith("data:") else found.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    return found


def check_nothing_ran(page: Page, url: str, asked: list[str]) -> None:
    assert page.evaluate("() => window.pwned") is None
    assert [address for address in asked if not address.startswith(url)] == []
    assert page.locator("main script, main iframe, main img:not([src^='data:image/']), main object").count() == 0


def node(id: str, parent: str | None, role: str = "assistant", content: str = "x", **more: Any) -> dict[str, Any]:
    return {"id": id, "parent": parent, "role": role, "content": content, **more}


def conversation(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "imported", "title": "Imported", "nodes": {n["id"]: n for n in nodes}, "leaf": nodes[-1]["id"], **more}


def bring_in(page: Page, folder: Path, value: Any) -> None:
    file = folder / "conversations.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    page.get_by_label("Conversations to import").set_input_files(file)


CLOSED = "is damaged|leads to no beginning|is no conversation|was not imported"
REFUSED = {
    "a loop": conversation(node("a", "b"), node("b", "a")),
    "itself": conversation(node("a", "a")),
    "a long loop": conversation(*(node(f"n{i}", f"n{(i + 1) % 5000}") for i in range(5000))),
    "no parent": conversation(node("a", "constructor")),
    "a parent that is no name": conversation(node("a", ["b"])),  # type: ignore[arg-type]
    "__proto__": '{"id": "x", "nodes": {"__proto__": {"id": "__proto__", "parent": null, "role": "user", "content": ""}}}',
    "the parent of first messages": conversation(node("null", None)),
    "a role": conversation(node("a", None, "system")),
    "an id with markup": conversation(node("<b>", None)),
    "nodes as a list": {"id": "x", "nodes": [1]},
    "null": "null",
    "a number": "[1]",
    "no JSON": "<html>",
    "deep": "[" * 100_000 + "]" * 100_000,
    "too many": conversation(node("a", None), *(node(f"n{i}", "a") for i in range(20_001))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_conversation_that_is_none_is_refused(page: Page, server: RunningServer, tmp_path: Path, name: str) -> None:
    chat = Chat(page, server.url)
    bring_in(page, tmp_path, REFUSED[name])
    expect(page.get_by_role("status")).to_contain_text("was not imported", timeout=SECONDS * 1000)
    expect(page.locator(".kept .entry")).to_have_count(0)
    chat.page.get_by_role("textbox", name="Message", exact=True).fill("still here")


WRONG_TYPES: list[Any] = [
    None,
    True,
    -1,
    1e308,
    "x",
    EVIL,
    [],
    [1, None, EVIL],
    {},
    {"toString": 1, "length": 3, "t": [], "a": "x"},
]
FIELDS = (
    "images",
    "files",
    "reasoning",
    "calls",
    "stats",
    "tokens",
    "scored",
    "finish",
    "error",
    "version",
    "created",
    "callId",
    "edited",
    "usage",
)


def test_members_of_any_type_are_taken_or_left(page: Page, server: RunningServer, tmp_path: Path, asked: list[str]) -> None:
    chat = Chat(page, server.url)
    conversations = []
    for i, value in enumerate(WRONG_TYPES):
        inner = [value, {"id": value, "name": value, "arguments": value, "text": value, "t": value, "p": value, "a": [value]}]
        user = node("u", None, "user", images=["http://evil.example/x", "javascript:1", value], files=inner, version=value)
        wrong = node("w", "u", **dict.fromkeys(FIELDS, value))
        filled = node("f", "w", calls=inner, tokens=inner, stats={"completion": 3, "rate": value, "first": value}, images=inner)
        conversations.append(conversation(user, wrong, filled, id=f"c{i}", title=value, system=value, created=value))
    bring_in(page, tmp_path, conversations)
    expect(page.locator(".kept .entry")).to_have_count(len(WRONG_TYPES))
    for view in ("Text", "Tokens", "Origins"):
        page.get_by_role("button", name=view, exact=True).click()
        for i in range(len(WRONG_TYPES)):
            page.locator(".kept .entry").nth(i).click()
            expect(page.locator(".message")).to_have_count(3)
    page.get_by_role("button", name="Text", exact=True).click()
    check_nothing_ran(page, server.url, asked)
    chat.option(max_tokens=4)
    chat.say("Still there?")


def test_an_end_that_is_no_name_is_none(page: Page, server: RunningServer, tmp_path: Path) -> None:
    chat = Chat(page, server.url)
    bring_in(page, tmp_path, conversation(node("a", None, "user"), leaf=["a"]))
    page.locator(".kept .entry").click()
    expect(page.locator(".talk-bar")).to_have_count(0)
    show_answer(page, "Yes.")
    chat.say("Hello")
    page.reload()
    expect(page.locator(".said")).to_have_text("Hello")


def test_names_and_tool_calls_are_text(page: Page, server: RunningServer, tmp_path: Path, asked: list[str]) -> None:
    Chat(page, server.url)
    calls = [{"id": attack, "name": attack, "arguments": attack} for attack in ATTACKS]
    user = node("u", None, "user", EVIL, files=[{"name": EVIL, "text": EVIL}])
    answer = node("a", "u", "assistant", EVIL, calls=calls, error=EVIL, finish=EVIL)
    bring_in(page, tmp_path, conversation(user, answer, node("t", "a", "tool", EVIL, callId=EVIL), title=EVIL, system=EVIL))
    page.locator(".kept .entry").first.click()
    expect(page.locator(".tool-call")).to_have_count(len(ATTACKS))
    page.get_by_role("button", name="The request as code").click()
    for form in ("curl", "openai", "sglang"):
        page.get_by_role("tab", name=form).click()
    page.keyboard.press("Escape")
    check_nothing_ran(page, server.url, asked)


def test_models_and_errors_are_text(page: Page, server: RunningServer, asked: list[str], troubles: Troubles) -> None:
    troubles.expected = ("400",)
    models = {"object": "list", "data": [{"id": EVIL}, {"id": f"two{EVIL}"}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json={"error": {"message": EVIL}}))
    chat = Chat(page, server.url)
    chat.say("Hello")
    expect(page.get_by_role("alert")).to_contain_text("<img src=")
    page.unroute("**/v1/chat/completions")
    event = f"data: {json.dumps({'error': {'message': [EVIL]}})}\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=event, content_type="text/event-stream"))
    chat.say("Hello")
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Model", exact=True).select_option(f"two{EVIL}")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("link", name="Constraints").click()
    page.get_by_role("button", name="Code").click()
    check_nothing_ran(page, server.url, asked)


def test_a_conversation_of_50_megabytes(page: Page, server: RunningServer, tmp_path: Path) -> None:
    Chat(page, server.url)
    long = "# Title\n\nword *and* word\n\n" * 2_000_000
    nodes = [node("u", None, "user", "x" * 3_000_000), node("a", "u", "assistant", long)]
    bring_in(page, tmp_path, conversation(*nodes))
    expect(page.get_by_role("status")).to_contain_text("1 imported", timeout=SECONDS * 1000)
    began = time.monotonic()
    page.locator(".kept .entry").first.click()
    expect(page.locator(".message.assistant")).to_contain_text("more characters are not shown", timeout=SECONDS * 1000)
    page.get_by_role("textbox", name="Message", exact=True).fill("still quick")
    assert time.monotonic() - began < SECONDS


def test_a_conversation_of_many_messages(page: Page, server: RunningServer, tmp_path: Path) -> None:
    Chat(page, server.url)
    line = [node(f"n{i}", f"n{i - 1}" if i else None, "user" if i % 2 else "assistant", f"message {i}") for i in range(15_000)]
    bring_in(page, tmp_path, conversation(*line, *(node(f"b{i}", "n7") for i in range(3000)), node("n15000", "n14999")))
    expect(page.get_by_role("status")).to_contain_text("1 imported", timeout=SECONDS * 1000)
    page.locator(".kept .entry").first.click()
    expect(page.locator(".message")).to_have_count(100)
    expect(page.get_by_role("button", name="Show 14901 earlier messages")).to_be_visible()
    page.get_by_role("button", name="Branches").click()
    expect(page.locator(".branch-tree li")).to_have_count(1000)


DENSE = (
    "[",
    "![",
    "](",
    "*a_b",
    "**a **",
    "`",
    "``` ",
    "<",
    "<a ",
    "|",
    "|-",
    ">",
    "- ",
    "1. ",
    "$",
    "$$\n",
    "$$x\n",
    "\\(",
    "\\[\n",
    "\\[x",
    "http://a.",
    "www.a.b/",
    "a@b.",
    "&",
    "&#x",
    "{",
    "\\",
    "~~",
    "\n",
    "[a](b ",
    "[a]: b\n",
    "  - ",
    "$\\frac{",
    "$\\left(",
    "$x$ ",
    "# ",
    "\t",
    ">" * 200 + "a\nb\nb\nb\nb\nb\n",
    "- " * 90 + "a\nb\n",
    "> > > > > > > > > > a\n",
    "a**b",
    "*_",
    "![[",
    '[a](b "c',
    '[a]: b\n"c\n',
    "[a]:\n",
    "[a]: b\n\n[a]\n\n",
    "|" + "a|" * 50 + "\n|" + "-|" * 50 + "\n" + "b\n" * 2000,
    "|" + "a|" * 5000 + "\n|" + "-|" * 5000 + "\n" + "b\n" * 2000,
    "| a | b |\n|---|---|\n" + "| c | d |\n" * 50_000,
    "```\n",
    "```\n" + "a\n" * 400_000,
    "```\n" + "a" * 400_000,
    "$$\na\n",
    "\\[a\n",
    "$$\\begin{matrix}" + "a&" * 190 + "\\end{matrix}$$\n\n",
    "a@b.c ",
    "# a\n",
    "a\n\n",
    "\ud83d\ude00",
    "1. a\n",
)


NUM_DENSE = 40_000
"""characters: enough of several pieces"""
READ = """async (text) => {
    const { Growing } = await import('/page/js/chat/blocks.js');
    const [read, found] = [new Growing(), { steps: 0, slowest: 0, longest: 0 }];
    let tail, isMore;
    do {
        const began = performance.now();
        ({ tail, isMore } = read.feed(text));
        found.slowest = Math.max(found.slowest, performance.now() - began);
        found.steps += 1;
    } while (isMore && found.steps < 10_000);
    found.longest = Math.max(...[...read.blocks, tail].map((markup) => markup.toString().length));
    return { ...found, isMore }; }"""


def test_no_text_freezes_the_page(page: Page, server: RunningServer) -> None:
    """A long text of what makes parsers look far, or deep, or makes much markup of little: whatever it is, it is read in pieces, each of
    which has little markup and takes little time."""
    Chat(page, server.url)
    for part in DENSE:
        found = page.evaluate(READ, (part * (NUM_DENSE // len(part) + 1))[:NUM_DENSE])
        assert not found["isMore"] and found["longest"] < 150_000, (part, found["steps"], found["longest"])
        assert found["slowest"] < SECONDS * 1000 / 5, part


def test_a_long_text_is_cut_where_that_is_not_seen(page: Page, server: RunningServer) -> None:
    """Items of lists go on counting, rows of tables have their heads, lines of code stay code, and nothing is lost; whether the text was
    there at once or came in pieces."""
    items = "".join(f"{i}. item {i} has some *words*\n" for i in range(1, 1201))
    rows = "| number | word |\n|---|---|\n" + "".join(f"| {i} | w{i} |\n" for i in range(1200))
    code = "```python\n" + "".join(f"line_{i} = {i}\n" for i in range(2500)) + "```\n"
    quote = "".join(f"> said {i}\n" for i in range(3000))
    words = " ".join(f"word{i}" for i in range(4000))
    text = f"# Title\n\n{items}\n{rows}\n{code}\n{quote}\n{words}\n\nThe end."
    Chat(page, server.url)
    show = """async ([text, steps]) => {
        const { Growing } = await import('/page/js/chat/blocks.js');
        const read = new Growing();
        let tail, isMore;
        for (let i = 1; i <= steps; i += 1) do ({ tail, isMore } = read.feed(text.slice(0, Math.ceil(text.length * i / steps)))); while (isMore);
        const box = document.createElement('div');
        for (const markup of [...read.blocks, tail]) box.append(Object.assign(document.createElement('div'), { innerHTML: markup }));
        const all = (what) => [...box.querySelectorAll(what)];
        const numbers = all('ol').flatMap((list) => [...list.children].map((_, i) => list.start + i));
        return [numbers, all('td').map((cell) => cell.textContent), all('pre').map((one) => one.textContent).join(''), all('blockquote').map((one) => one.textContent).join(' '),
                all('p').at(-1).textContent, all('p').map((one) => one.textContent).join(' '), all('p').filter((one) => one.textContent.includes('|')).length]; }"""
    for steps in (1, 23):
        numbers, cells, lines, said, end, told, lost = page.evaluate(show, [text, steps])
        assert numbers == list(range(1, 1201)), steps
        assert cells == [cell for i in range(1200) for cell in (str(i), f"w{i}")]
        assert lines == code.removeprefix("```python\n").removesuffix("```\n")
        assert said.split() == [word for i in range(3000) for word in ("said", str(i))]
        assert end == "The end." and words.split()[-1] in told and told.split()[-4002:-2] == words.split() and not lost


# --- programs -----------------------------------------------------------------------------------------------------------------


def call(**more: Any) -> dict[str, Any]:
    answer = {"texts": ["yes"], "metas": [{"prompt_tokens": 3}]}
    return {
        "kind": "call",
        "run": "r",
        "branch": "0",
        "started": 1.0,
        "time": 2.0,
        "text": "Is it?",
        "value": {"answer": answer, "options": {}},
        **more,
    }


RECORDINGS: dict[str, list[Any]] = {
    "markup": [
        {"kind": "run", "run": "r", "program": EVIL, "backend": EVIL, "model": EVIL},
        call(name=EVIL, text=EVIL, value={"answer": {"texts": [EVIL]}, "options": {"choices": [EVIL], "regex": EVIL}}),
    ],
    "types": [
        call(**{name: value}) for name in ("run", "branch", "started", "time", "text", "name", "value") for value in WRONG_TYPES
    ],
    "answers": [call(value={"answer": value, "options": value, "kind": value}) for value in WRONG_TYPES],
    "inner": [
        call(
            value={"answer": {"texts": value, "metas": value, "meta": value, "decision": value}, "options": {"choices": value}}
        )
        for value in WRONG_TYPES
    ],
    "numbers": [call(started=-1e308, time=1e308), call(started=5, time=1)],
    "branches": [
        call(branch=branch) for branch in ("1", "1.2", "0.", "0..1", "0.-1", "0." * 5000 + "0", "x", "__proto__", "0.1.2")
    ],
    "many": [call(branch=f"0.{i}.{i}", name=f"call {i}") for i in range(20_000)],
    "many runs": [call(run=f"run {i}") for i in range(5000)],
    "long": [call(text="word " * 4_000_000, name="n" * 100_000)],
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_may_say_anything(page: Page, server: RunningServer, tmp_path: Path, asked: list[str], name: str) -> None:
    page.goto(f"{server.url}/#programs")
    file = tmp_path / f"{name} <img src=x onerror=1>.jsonl"
    lines = "\n".join(json.dumps(row) for row in RECORDINGS[name])
    file.write_text(f"{lines}\n{lines.replace('2.0', '1e999')}" if name == "numbers" else lines)
    page.get_by_label("Recording").set_input_files(file)
    expect(page.locator(".time-line .call").first).to_be_visible(timeout=SECONDS * 1000)
    for i in range(min(page.locator(".time-line .call").count(), 12)):
        page.locator(".time-line .call").nth(i).dispatch_event("click")
        expect(page.locator(".call-text")).to_be_visible()
    assert page.locator(".time-line .lane").count() <= 200
    assert "NaN" not in page.locator(".time-line").first.evaluate("(svg) => svg.outerHTML")
    check_nothing_ran(page, server.url, asked)


def test_programs_of_others_are_text(page: Page, server: RunningServer, asked: list[str]) -> None:
    """Whoever may send requests may say of which run they are."""
    look(page, server.url, "programs")
    for i, branch in enumerate(("7.1", "0.1", "0.999999" + ".1" * 20, "0")):
        headers = {
            "X-Sglang-Run": f"abc{i % 2}/{branch}",
            "X-Sglang-Variable": "%3Cimg%20src=x%20onerror=window.pwned=1%3E" + "%00%E2%80%AE" * 9,
        }
        body = {"text": EVIL, "sampling_params": {"max_new_tokens": 2}}
        assert httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=60, trust_env=False).status_code == 200
    runs = page.get_by_role("group", name="Runs").get_by_role("button")
    expect(runs).to_have_count(2)
    for i in range(2):
        runs.nth(i).click()
        page.locator(".time-line .call").first.dispatch_event("click")
        expect(page.locator(".call-text")).to_contain_text("<img src=")
    page.get_by_role("link", name="Machine").click()
    wait_for(lambda: page.locator(".icicle canvas").count() == 1)
    page.locator(".icicle-box").focus()
    page.keyboard.press("ArrowDown")
    check_nothing_ran(page, server.url, asked)
