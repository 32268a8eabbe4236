"""What the browser keeps for this address may have been written by other programs, which may have had the same port, or by another version
of the page. And what is typed is wrong for a while: nothing of it takes a view along."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.conftest import RunningServer
from tests.page.conftest import Chat, Troubles
from tests.page.test_hostile_depth import still_there
from tests.page.test_hostile_files import EVIL
from tests.page.test_look import show_answer

KEPT: dict[str, str] = {
    "no JSON": "not json",
    "null": "null",
    "a number": "5",
    "a text": json.dumps(EVIL),
    "a list": "[1, null]",
    "nothing in it": "{}",
    "members of wrong types": '{"sampling": null, "stop": 5, "tools": {}, "thinking": "yes"}',
    "values of wrong types": '{"sampling": {"temperature": "hot", "top_p": 9e99, "seed": [1], "toString": 1, "x": 1}, "stop": null}',
    "deep": "[" * 50_000 + "]" * 50_000,
}
NAMES = tuple(
    f"sglang.{name}"
    for name in ("options", "tokenView", "model", "theme", "conversation", "key", "left", "draft", "constraint")
)


@pytest.mark.parametrize("name", KEPT)
def test_what_others_keep_by_our_names(page: Page, server: RunningServer, name: str) -> None:
    page.goto(server.url)
    page.evaluate(
        """([names, text]) => { for (const name of names) { localStorage.setItem(name, text); sessionStorage.setItem(name, text); } }""",
        [NAMES, KEPT[name]],
    )
    chat = Chat(page, server.url)
    page.reload()
    sent: list[dict[str, Any]] = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.url.endswith("/chat/completions") else None)
    chat.option(seed=3)
    show_answer(page, "Yes.")
    chat.say("Hello")
    assert set(sent[0]) == {"model", "messages", "seed", "stream", "stream_options"}
    assert chat.answer == "Yes."
    page.get_by_role("button", name="The request as code").click()
    expect(page.locator(".request-code")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Constraints").click()
    expect(page.get_by_text("The server can follow it.")).to_be_visible()
    page.get_by_role("link", name="Chat").click()
    still_there(page)
    assert page.locator(".error").count() == 0


FILL = """async (records) => { const { list } = await import('/page/js/chat/conversations.js');
    await new Promise((done) => { const opening = indexedDB.open('sglang', 1); opening.onsuccess = () => {
        const table = opening.result.transaction('conversations', 'readwrite').objectStore('conversations');
        for (const record of records) table.put(record);
        table.transaction.oncomplete = done; }; }); }"""
MESSAGE = {"id": "a", "parent": None, "role": "user", "content": "hello"}
RECORDS: list[dict[str, Any]] = [
    {"id": "r1"},
    {"id": "r2", "title": {"a": 1}, "updated": "x", "nodes": "text"},
    {"id": "r3", "title": 5, "nodes": {"a": None}, "leaf": "a"},
    {"id": "r4", "title": EVIL, "nodes": {"a": {**MESSAGE, "content": 7}}, "leaf": "a"},
    {"id": "r5", "title": "loop", "nodes": {"a": {**MESSAGE, "parent": "a"}}, "leaf": "a"},
    {"id": "r6", "title": "sound", "nodes": {"a": {**MESSAGE, "version": 3}}, "leaf": "a"},
]


def test_conversations_that_others_have_kept(page: Page, server: RunningServer) -> None:
    """One that is damaged is not shown, says so, and can be deleted; what this tab had on view is no reason to fail after a reload."""
    chat = Chat(page, server.url)
    page.evaluate(FILL, RECORDS)
    page.reload()
    entries = page.locator(".kept .entry")
    expect(entries).to_have_count(len(RECORDS))
    for i in range(len(RECORDS)):
        entries.nth(i).click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be read")
    entries.filter(has_text="sound").click()
    expect(page.locator(".said")).to_have_text("hello")
    show_answer(page, "Yes.")
    chat.say("Is there room?")
    expect(page.get_by_role("alert")).to_have_count(0)
    for record in RECORDS[:5]:
        page.evaluate("(id) => sessionStorage.setItem('sglang.conversation', id)", record["id"])
        page.reload()
        expect(entries).to_have_count(len(RECORDS))
        expect(page.locator(".empty h2")).not_to_have_text("…")
    chat.delete("loop")
    expect(entries).to_have_count(len(RECORDS) - 1)
    still_there(page)


def until(page: Page, held: list[Route], count: int) -> None:
    """So many requests are held."""
    while len(held) < count:
        page.wait_for_timeout(20)


def test_a_constraint_that_is_half_typed(page: Page, server: RunningServer, troubles: Troubles) -> None:
    """The answer to the last text says nothing about this one, and no view fails."""
    troubles.expected = ("400",)
    held: list[Route] = []
    page.route("**/generate", lambda route: held.append(route))
    page.goto(f"{server.url}/#constraints")
    state = page.locator("#constraint-problem")
    editor = page.get_by_label("JSON schema", exact=True)
    for text in ('{"type": "object"}', '{"type": "string"}'):
        editor.fill(text)
        expect(state).to_have_text("Checking …")
        while not held or held[-1].request.post_data_json["sampling_params"]["json_schema"] != text:
            page.wait_for_timeout(20)
        expect(state).to_have_text("Checking …")
        while held:
            held.pop().continue_()
        expect(state).to_have_text("The server can follow it.")
    page.get_by_role("button", name="Code").click()
    expect(page.locator(".request-code")).to_be_visible()
    for text in ('{"type": ', "", "[" * 5000, '{"type": "object", }'):
        editor.fill(text)
        expect(page.get_by_text("Mend the constraint first.")).to_be_visible()
        expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    expect(page.get_by_text("This view has failed")).to_have_count(0)


def test_tools_that_are_half_typed(page: Page, server: RunningServer) -> None:
    chat = Chat(page, server.url)
    show_answer(page, "Yes.")
    chat.say("Hello")
    for tools in ("[1", "{}", "[" * 5000):
        page.get_by_role("button", name="Options").click()
        page.get_by_label("Tools", exact=True).fill(tools)
        expect(page.get_by_role("alert")).to_contain_text("tools")
        page.get_by_role("button", name="Done").click()
    chat.say("Hello again", wait=False)
    expect(page.locator(".message .error")).to_contain_text("tools")
    expect(page.get_by_role("button", name="The request as code")).to_have_count(2)
    page.get_by_role("button", name="The request as code").last.click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("tools")
    page.keyboard.press("Escape")
    still_there(page)


def test_the_model_that_was_chosen_last_counts(page: Page, server: RunningServer) -> None:
    """Whatever order the answers come in."""
    held: list[Route] = []
    cards = [{"id": name, "loaded": True} for name in ("first", "second")]
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": cards}))
    page.route("**/get_model_info", lambda route: route.fulfill(json={"sampling_defaults": {"temperature": 0.1}}))
    Chat(page, server.url)
    page.unroute("**/get_model_info")
    page.route("**/get_model_info", lambda route: held.append(route))
    page.get_by_role("button", name="Options").click()
    until(page, held, 1)
    page.get_by_label("Model", exact=True).select_option("second")
    until(page, held, 2)
    for route in reversed(held):
        number = 0.2 if "/second/" in route.request.url else 0.3
        with page.expect_response(route.request.url):
            route.fulfill(json={"sampling_defaults": {"temperature": number}})
    expect(page.locator("#option-temperature")).to_have_attribute("placeholder", "0.2")
    page.wait_for_timeout(200)
    expect(page.locator("#option-temperature")).to_have_attribute("placeholder", "0.2")
