"""Trouble: servers that die, keys that end, slow networks, reloads, two tabs, full disks, many conversations."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from playwright.sync_api import BrowserContext, Page, expect

from tests.conftest import RunningServer, start_server
from tests.page.conftest import Chat, Troubles, wait_for
from tests.page.test_look import show_answer

COUNT = "Count from 1 to 1000, one number a line."


def begin_long_answer(page: Page, url: str) -> Chat:
    chat = Chat(page, url)
    chat.option(temperature=0, max_tokens=4000)
    chat.talk_on()
    chat.say(COUNT, wait=False)
    wait_for(lambda: len(chat.answer) > 20)
    return chat


def test_what_dies_in_the_middle(page: Page, tmp_path: Path, troubles: Troubles) -> None:
    """A scheduler: nobody notices. The server: the page says so, and finds the one that is started anew on its port without a click."""
    troubles.expected = ("net::", "Failed to load", "ERR_")
    running = start_server(tmp_path / "log")
    chat = begin_long_answer(page, running.url)
    before = len(chat.answer)
    os.kill(running.scheduler(), signal.SIGKILL)
    wait_for(lambda: len(chat.answer) > before + 40, 60)
    assert page.get_by_role("alert").count() == 0
    running.process.kill()
    running.process.wait()
    expect(page.get_by_role("alert")).to_contain_text("The connection broke before the answer was complete")
    said = chat.answer
    assert len(said) > 20, "what had come is kept"
    chat.say("And now?", wait=False)
    expect(page.get_by_role("alert").last).to_contain_text("The server does not answer")
    expect(page.locator(".message[aria-busy=true]")).to_have_count(0)
    page.get_by_role("link", name="Machine").click()
    expect(page.get_by_role("alert").last).to_contain_text("does not answer")
    port = running.url.rpartition(":")[2]
    again = start_server(tmp_path / "log2", "--port", port, "--served-model-name", "another")
    try:
        expect(page.locator(".figure", has_text=re.compile("^Running"))).to_be_visible(timeout=30_000)
        expect(page.locator(".model")).to_have_text("another")
    finally:
        again.process.terminate()
        again.process.wait(30)


class Cut(BaseHTTPRequestHandler):
    """Says a beginning and ends, as a proxy does that lost its server."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(
            b'data: {"choices": [{"index": 0, "delta": {"content": "The begin"}, "finish_reason": null}]}\n\ndata: {"choi'
        )


def test_a_stream_that_ends_early(page: Page, server: RunningServer) -> None:
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    chat = Chat(page, server.url)
    body = httpx.post(f"http://127.0.0.1:{proxy.server_port}/", trust_env=False).text
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    chat.say("Hello")
    expect(page.get_by_role("alert")).to_contain_text("ended before it was complete")
    assert chat.answer == "The begin"
    proxy.shutdown()
    page.unroute("**/v1/chat/completions")
    chat.option(max_tokens=5)
    with chat.answering():
        page.get_by_role("button", name="Go on with this answer").click()
    assert chat.answer.startswith("The begin") and len(chat.answer) > len("The begin")


STRANGE = {
    "data: {broken\n\n": "cannot be read",
    "data: null\n\n": "cannot be read",
    'data: {"error": "it died"}\n\n': "it died",
    'data: {"error": {}}\n\n': "The server failed",
    'data: {"choices": [{"index": 0}]}\n\n': "ended before it was complete",
}


def test_what_answers_is_no_server_of_ours(page: Page, server: RunningServer) -> None:
    """What went wrong is said, not how the page came to notice it."""

    def fulfil(path: str, body: str, kind: str) -> None:
        page.route(path, lambda route: route.fulfill(body=body, content_type=kind))

    chat = Chat(page, server.url)
    for body, words in STRANGE.items():
        fulfil("**/v1/chat/completions", body, "text/event-stream")
        chat.say("Hello", wait=False)
        expect(page.locator(".message.assistant").last.get_by_role("alert")).to_contain_text(words)
        expect(page.locator(".message[aria-busy=true]")).to_have_count(0)
    for body in ("[]", "{}", '{"data": [null]}', "<html>"):
        fulfil("**/v1/models", body, "application/json")
        page.reload()
        expect(page.locator(".banner")).to_contain_text("cannot be read")


def test_a_reload_in_the_middle(page: Page, server: RunningServer) -> None:
    begin_long_answer(page, server.url)
    page.reload()
    wait_for(lambda: httpx.get(f"{server.url}/get_load", trust_env=False).json()[0]["num_reqs"] == 0)
    expect(page.locator(".message.assistant .stats")).to_have_text("not complete")  # it is on view again
    chat = Chat.__new__(Chat)
    chat.page = page
    said = chat.answer
    assert len(said) > 10
    page.get_by_role("button", name="Options").click()
    page.locator("#option-max_tokens").fill("10")
    page.get_by_role("button", name="Done").click()
    with chat.answering():
        page.get_by_role("button", name="Go on with this answer").click()
    assert len(chat.answer) > len(said)


def test_a_reload_whose_transaction_is_lost(page: Page, server: RunningServer) -> None:
    """A browser may end a page before what it writes while it is left has been written: the tab has it as well."""
    chat = begin_long_answer(page, server.url)
    page.evaluate("() => { IDBObjectStore.prototype.put = () => { throw new Error('too late'); }; }")
    said = chat.answer
    page.reload()
    expect(page.locator(".message.assistant .stats")).to_have_text("not complete")
    assert chat.answer.startswith(said)
    expect(page.locator(".kept .entry")).to_have_count(1)
    page.reload()
    expect(page.locator(".message.assistant .stats")).to_have_text("not complete")
    wait_for(lambda: httpx.get(f"{server.url}/get_load", trust_env=False).json()[0]["num_reqs"] == 0)


def test_two_tabs(context: BrowserContext, server: RunningServer) -> None:
    """Each answers in the same conversation: nothing of either is lost."""
    one, two = (Chat(context.new_page(), server.url) for _ in range(2))
    one.option(max_tokens=8)
    for chat in (one, two):
        show_answer(chat.page, f"Answer of tab {1 if chat is one else 2}.")
    one.say("First")
    expect(two.page.locator(".kept .entry")).to_have_text("First")
    two.page.locator(".kept .entry").first.click()
    one.option(system="Be brief.")
    one.say("of the first tab")
    two.say("of the second tab")
    one.say("again of the first tab")
    for chat in (one, two):
        chat.page.reload()
        chat.page.locator(".kept .entry").first.click()
        chat.page.get_by_role("button", name="Branches").click()
        tree = chat.page.locator(".branch-tree")
        for text in ("of the first tab", "of the second tab", "again of the first tab"):
            expect(tree).to_contain_text(text)
        chat.page.get_by_role("button", name="Close").click()
        expect(chat.page.locator(".system")).to_have_text("System Be brief.")
    one.delete("First")
    for page in (one.page, two.page):
        expect(page.locator(".kept .entry")).to_have_count(0)
        expect(page.locator(".message")).to_have_count(0)


def test_another_conversation_in_the_middle_of_an_answer(page: Page, server: RunningServer) -> None:
    """It goes on meanwhile, and is seen to go on afterwards."""
    chat = Chat(page, server.url)
    show_answer(page, "Yes.")
    chat.say("The other one")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="New conversation").click()
    begin_long_answer(page, server.url)
    entries = page.locator(".kept .entry")
    entries.filter(has_text="The other one").click()
    expect(page.locator(".said")).to_have_text("The other one")
    entries.filter(has_text="Count").click()
    expect(page.locator(".said")).to_have_text(COUNT)
    said = chat.answer
    wait_for(lambda: len(chat.answer) > len(said))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".message.assistant .stats")).to_contain_text("stopped")
    said = chat.answer
    page.reload()
    expect(page.locator(".said")).to_have_text(COUNT)
    assert chat.answer == said


KEPT = """async () => { const { exportAll, keep } = await import('/page/js/chat/conversations.js');
    await keep(); return JSON.stringify(await exportAll()); }"""


def num_running(url: str) -> int:
    return int(httpx.get(f"{url}/get_load", trust_env=False).json()[0]["num_reqs"])


def test_what_is_deleted_in_the_middle_of_its_answer(page: Page, server: RunningServer) -> None:
    """Nothing more is generated for it, and it does not come back."""
    chat = begin_long_answer(page, server.url)
    page.locator(".message.user").get_by_role("button", name="Delete this message").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".message")).to_have_count(0)
    wait_for(lambda: num_running(server.url) == 0)
    assert "Count" not in page.evaluate(KEPT)
    chat.say(COUNT, wait=False)
    wait_for(lambda: len(chat.answer) > 20)
    chat.delete("Count")
    wait_for(lambda: num_running(server.url) == 0)
    assert page.evaluate(KEPT) == "[]"
    page.reload()
    expect(page.locator(".empty h2")).not_to_have_text("…")
    expect(page.locator(".kept .entry")).to_have_count(0)


def test_what_one_tab_deletes_no_other_brings_back(context: BrowserContext, server: RunningServer, tmp_path: Path) -> None:
    one, two = (Chat(context.new_page(), server.url) for _ in range(2))
    for chat in (one, two):
        show_answer(chat.page, "Yes.")
    one.say("First")
    one.say("Second")
    with one.page.expect_download() as waiting:
        one.page.get_by_role("button", name="Export this conversation").click()
    waiting.value.save_as(tmp_path / "one.json")
    two.page.locator(".kept .entry").first.click()
    expect(two.page.locator(".said")).to_have_text(["First", "Second"])
    one.page.locator(".message.user").last.get_by_role("button", name="Delete this message").click()
    one.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(one.page.locator(".said")).to_have_text(["First", "Second"])
    one.page.locator(".message.user").last.get_by_role("button", name="Delete this message").click()
    one.page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(two.page.locator(".said")).to_have_text(["First"])
    two.say("Third")
    expect(one.page.locator(".message")).to_have_count(2)
    wait_for(lambda: "Third" in one.page.evaluate(KEPT))
    assert "Second" not in one.page.evaluate(KEPT)
    # a file brings it back, and takes nothing away that has come since
    one.page.get_by_label("Conversations to import").set_input_files(tmp_path / "one.json")
    expect(one.page.locator(".said")).to_have_text(["First", "Second"])
    wait_for(lambda: "Third" in one.page.evaluate(KEPT))
    # the tab that was left with something to write finds it deleted
    one.page.evaluate("() => { IDBObjectStore.prototype.put = () => { throw new Error('too late'); }; }")
    one.page.evaluate(
        "async () => { const { current, touch } = await import('/page/js/chat/conversations.js'); touch(current.value); }"
    )
    one.page.goto("about:blank")
    two.delete("First")
    one.page.go_back()
    expect(one.page.locator(".empty h2")).not_to_have_text("…")
    expect(one.page.locator(".kept .entry")).to_have_count(0)
    wait_for(lambda: one.page.evaluate("() => sessionStorage.getItem('sglang.left')") is None)
    assert one.page.evaluate(KEPT) == "[]"


def test_what_is_being_written_stays(page: Page, server: RunningServer, troubles: Troubles) -> None:
    """While other views are looked at, and over a reload."""
    troubles.expected = ("400 (Bad Request)",)
    Chat(page, server.url)
    message = page.get_by_role("textbox", name="Message", exact=True)
    message.fill("half a")
    page.get_by_role("link", name="Constraints").click()
    page.get_by_role("textbox", name="JSON schema").fill('{"type": "inte"}')
    page.get_by_role("link", name="Chat").click()
    expect(message).to_have_value("half a")
    page.reload()
    expect(message).to_have_value("half a")
    show_answer(page, "Yes.")
    message.press("Enter")
    message.press("Enter")
    expect(page.locator(".said")).to_have_text(["half a"])
    expect(message).to_have_value("")
    page.get_by_role("link", name="Constraints").click()
    expect(page.get_by_role("textbox", name="JSON schema")).to_have_value('{"type": "inte"}')


def test_the_user_clears_what_the_browser_keeps(page: Page, server: RunningServer) -> None:
    """What is on view is kept again with the next message."""
    chat = Chat(page, server.url)
    show_answer(page, "Yes.")
    chat.say("First")
    page.evaluate(KEPT)
    session = page.context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "indexeddb"})
    chat.say("Second")
    page.evaluate(KEPT)
    expect(page.get_by_role("alert")).to_have_count(0)
    page.reload()
    expect(page.locator(".said")).to_have_text(["First", "Second"])


def test_a_browser_without_room(page: Page, server: RunningServer, tmp_path: Path) -> None:
    chat = Chat(page, server.url)
    session = page.context.new_cdp_session(page)
    session.send("Storage.overrideQuotaForOrigin", {"origin": server.url, "quotaSize": 1000})
    show_answer(page, "x" * 200_000)
    chat.say("Hello " + "y" * 100_000)
    expect(page.get_by_role("alert")).to_contain_text("cannot be kept in this browser")
    answer = page.locator(".message.assistant .markdown").last
    wait_for(lambda: (answer.text_content() or "").count("x") == 200_000, 60)  # the conversation goes on; it is drawn in pieces
    session.send("Storage.overrideQuotaForOrigin", {"origin": server.url})
    show_answer(page, "Yes.")
    chat.say("Is there room now?")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.reload()
    page.locator(".kept .entry").first.click()
    expect(page.locator(".message")).to_have_count(4)


def test_200_conversations(page: Page, server: RunningServer, tmp_path: Path) -> None:
    Chat(page, server.url)
    made = []
    for i in range(200):
        message = {"id": "a", "parent": None, "role": "user", "content": f"question {i}"}
        made.append({"id": f"c{i}", "title": f"Question {i}", "nodes": {"a": message}, "leaf": "a", "updated": i})
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"conversations": made}))
    page.get_by_label("Conversations to import").set_input_files(file)
    expect(page.locator(".kept .entry")).to_have_count(200)
    assert page.locator(".kept .entry").first.inner_text() == "Question 199"
    page.get_by_role("searchbox", name="Find a conversation").fill("question 7")
    expect(page.locator(".kept .entry")).to_have_count(11)
    page.locator(".kept .entry").last.click()
    expect(page.locator(".said")).to_have_text("question 7")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export all").click()
    waiting.value.save_as(tmp_path / "again.json")
    assert len(json.loads((tmp_path / "again.json").read_text())["conversations"]) == 200


def test_a_slow_network(page: Page, server: RunningServer) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    slow = {"offline": False, "latency": 600, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
    session.send("Network.emulateNetworkConditions", slow)
    page.goto(server.url, wait_until="commit")
    expect(page.locator(".first-paint, .composer").first).to_be_visible()
    chat = Chat(page, server.url)
    page.get_by_role("textbox", name="Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator(".waiting")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".stats")).to_contain_text("stopped")
    chat.option(max_tokens=5)
    chat.say("Hello again")
    assert chat.answer


def test_a_key_that_ends(page: Page, server: RunningServer, troubles: Troubles) -> None:
    """The server is started anew with another key while the page is open."""
    troubles.expected = ("401",)
    chat = Chat(page, server.url)
    error = {"error": {"message": "the API key is missing or wrong"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=401, json=error))
    chat.say("Hello", wait=False)
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    page.get_by_label("Key", exact=True).fill("schlüssel")
    page.get_by_role("button", name="Use the key").click()
    expect(page.get_by_role("alert").last).to_contain_text("ASCII")
    page.unroute("**/v1/chat/completions")
    page.get_by_label("Key", exact=True).fill("another")
    page.get_by_role("button", name="Use the key").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("alert")).to_contain_text("missing or wrong")
    with chat.answering():
        page.get_by_role("button", name="Answer again").click()
