"""Conversations: what a user does with them, on the default model and on one that sees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from sglang.srt.checkpoint.resolve import ALIASES
from sglang.srt.config import DEFAULT_MODEL
from tests.conftest import RunningServer
from tests.page.conftest import Chat, Troubles, wait_for
from tests.page.test_look import show_answer, show_events

FRANCE = "What is the capital of France? Answer in one sentence."


@pytest.fixture
def chat(page: Page, server: RunningServer) -> Chat:
    chat = Chat(page, server.url)
    chat.option(temperature=0, max_tokens=60)
    return chat


def test_an_answer_has_its_figures(chat: Chat) -> None:
    chat.say(FRANCE)
    assert "Paris" in chat.answer
    stats = chat.page.locator(".stats").inner_text()
    assert "first after" in stats and "cached" in stats
    chat.option(max_tokens=200)
    chat.talk_on()  # an answer that comes all at once has no speed
    chat.say("And of Italy?")
    assert "tokens/s" in chat.page.locator(".stats").last.inner_text()
    assert chat.page.locator(".message").count() == 4
    assert "none cached" not in chat.page.locator(".stats").last.inner_text()


# Resolves to what a dialog says of itself at the moment it is in the document.
WHEN_INSERTED = """() => new Promise((resolve) => {
  new MutationObserver((_, observer) => {
    const dialog = document.querySelector("dialog");
    if (!dialog) return;
    observer.disconnect();
    resolve(dialog.open);
  }).observe(document.body, { childList: true, subtree: true });
  document.querySelector("button[aria-label='Options']").click();
})"""


def test_a_dialog_is_open_as_soon_as_it_is_there(chat: Chat) -> None:
    for _ in range(3):
        assert chat.page.evaluate(WHEN_INSERTED)
        chat.page.keyboard.press("Escape")
        expect(chat.page.locator("dialog")).to_have_count(0)


def test_an_answer_is_stopped(chat: Chat, server: RunningServer) -> None:
    chat.option(max_tokens=4000)
    chat.talk_on()
    chat.say("Count from 1 to 1000, one number a line.", wait=False)
    expect(chat.page.locator(".message.assistant .markdown")).not_to_have_text("")
    chat.page.get_by_role("button", name="Stop").click()
    expect(chat.page.locator(".stats")).to_contain_text("stopped")
    length = len(chat.answer)
    chat.page.wait_for_timeout(300)
    assert len(chat.answer) == length > 0
    wait_for(lambda: httpx.get(f"{server.url}/get_load", trust_env=False).json()[0]["num_reqs"] == 0)


def test_versions_edits_and_the_tree(chat: Chat) -> None:
    chat.say(FRANCE)
    first = chat.answer
    with chat.answering():
        chat.page.get_by_role("button", name="Answer again").click()
    assert chat.answer == first  # greedy
    switch = chat.page.get_by_role("group", name="Versions of this message")
    expect(switch).to_contain_text("2/2")
    switch.get_by_role("button", name="Earlier version").click()
    expect(switch).to_contain_text("1/2")
    user = chat.page.locator(".message.user").first
    user.get_by_role("button", name="Edit").click()
    chat.page.get_by_role("textbox", name="Edit the message").fill("What is the capital of Italy? Answer in one sentence.")
    with chat.answering():
        chat.page.get_by_role("button", name="Send as a new branch").click()
    assert "Rome" in chat.answer
    chat.page.get_by_role("button", name="Branches").click()
    tree = chat.page.locator(".branch-tree li")
    assert tree.count() == 5
    tree.filter(has_text="France").first.get_by_role("button").click()
    expect(chat.page.locator(".message.user .said")).to_have_text(FRANCE)


def test_conversations_outlive_a_reload_and_travel(chat: Chat, tmp_path: Path) -> None:
    chat.say(FRANCE)
    said = chat.answer
    expect(chat.page.locator(".kept .entry")).to_have_count(1)
    chat.page.reload()
    chat.page.locator(".kept .entry").first.click()
    assert chat.answer == said
    with chat.page.expect_download() as waiting:
        chat.page.get_by_role("button", name="Export all").click()
    file = tmp_path / "all.json"
    waiting.value.save_as(file)
    assert len(json.loads(file.read_text())["conversations"]) == 1
    chat.delete("What is the capital")
    expect(chat.page.locator(".kept .entry")).to_have_count(0)
    chat.page.get_by_label("Conversations to import").set_input_files(file)
    expect(chat.page.locator(".kept .entry")).to_have_count(1)
    (tmp_path / "bad.json").write_text('{"id": "x", "nodes": {"a": {"id": "a", "role": "user", "content": 1}}}')
    chat.page.get_by_label("Conversations to import").set_input_files(tmp_path / "bad.json")
    expect(chat.page.get_by_role("status")).to_contain_text("message a of the conversation is damaged")


def test_options_are_the_model_s_until_the_user_sets_them(page: Page, server: RunningServer) -> None:
    chat = Chat(page, server.url)
    sent: list[dict[str, object]] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.url.endswith("/completions") else None)
    chat.say(FRANCE)
    assert set(sent[0]) == {"model", "messages", "stream", "stream_options"}
    chat.option(temperature=0.5, seed=7, system="Be brief.", stop="Paris")
    chat.say(FRANCE)
    assert (sent[1]["temperature"], sent[1]["seed"], sent[1]["stop"]) == (0.5, 7, ["Paris"])
    assert sent[1]["messages"][0] == {"role": "system", "content": "Be brief."}  # type: ignore[index]
    assert "Paris" not in chat.answer
    penalty = page.locator("#option-presence_penalty")
    page.get_by_role("button", name="Options").click()
    expect(penalty).to_have_attribute("placeholder", str(ALIASES[DEFAULT_MODEL].sampling["presence_penalty"]))
    page.locator("#option-temperature").fill("0")
    page.locator("#option-temperature").blur()
    expect(penalty).to_have_attribute("placeholder", "0")


def test_the_options_that_are_shown_are_those_that_hold(chat: Chat, server: RunningServer) -> None:
    """What the server does where a request says nothing is what it does where it says the same."""
    page = chat.page
    page.get_by_role("button", name="Options").click()
    page.get_by_role("button", name="All defaults").click()
    shown = page.locator("input[type=number]").evaluate_all("(all) => all.map((one) => [one.id.slice(7), one.placeholder])")
    numbers = {name: float(text) for name, text in shown if re.fullmatch("-?[0-9.]+", text)}
    numbers["top_k"] = int(numbers["top_k"])
    assert {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"} == set(
        numbers
    )
    said = []
    for fields in ({}, numbers, {**numbers, "temperature": 2}):
        body = {"messages": [{"role": "user", "content": "Tell me a story."}], "seed": 5, "max_tokens": 12, **fields}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60, trust_env=False).raise_for_status()
        said.append(reply.json()["choices"][0]["message"]["content"])
    assert said[0] == said[1] != said[2]


def test_options_are_numbers_that_the_server_takes(chat: Chat) -> None:
    """What is typed becomes the nearest of them; two that are changed at once are both set."""
    page = chat.page
    page.get_by_role("button", name="Options").click()
    typed = {"top_k": ["2.6", "0", "5000"], "seed": ["1.4", "-1"], "max_tokens": ["7.2"], "temperature": ["9"]}
    for (name, texts), taken in zip(typed.items(), (["3", "-1", "1000"], ["1", "0"], ["7"], ["2"]), strict=True):
        for text, value in zip(texts, taken, strict=True):
            page.locator(f"#option-{name}").fill(text)
            page.locator(f"#option-{name}").blur()
            expect(page.locator(f"#option-{name}")).to_have_value(value)
    page.evaluate(
        """() => { for (const name of ["top_p", "min_p"]) { const field = document.getElementById(`option-${name}`);
            field.value = "0.5"; field.dispatchEvent(new Event("change")); } }"""
    )
    for name in ("top_p", "min_p"):
        expect(page.locator(f"#option-{name}")).to_have_value("0.5")


def test_all_models_that_the_server_lists_can_be_chosen(page: Page, server: RunningServer) -> None:
    names = ["first", "<b>second</b>", "third " + "x" * 300]
    body = {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}
    page.route("**/v1/models", lambda route: route.fulfill(json=body))
    chat = Chat(page, server.url)
    sent: list[str] = []
    page.on("request", lambda r: sent.append(r.post_data_json["model"]) if r.url.endswith("/completions") else None)
    show_answer(page, "Yes.")
    for name in names:
        page.get_by_role("button", name="Options").click()
        assert page.get_by_label("Model", exact=True).locator("option").all_inner_texts() == names
        page.get_by_label("Model", exact=True).select_option(name)
        page.get_by_role("button", name="Done").click()
        expect(page.locator(".model")).to_have_text(name)
        chat.say("Hello")
    assert sent == names
    page.unroute("**/v1/models")
    page.reload()  # the chosen one is not served any more
    expect(page.locator(".model")).to_have_text("smollm2-135m-instruct")


def test_the_code_of_an_answer_is_what_it_was_asked_with(page: Page, server: RunningServer) -> None:
    """Whatever the options have become since; over a reload, too. What was cut and went on names its beginning."""
    chat = Chat(page, server.url)
    chat.option(seed=3, max_tokens=4)
    chat.say("Hello")
    beginning = chat.answer
    chat.option(seed=5, top_k=7)
    with chat.answering():
        page.get_by_role("button", name="Go on with this answer").click()
    sent = [{"seed": 5, "top_k": 7, "continue_final_message": True}, {"seed": 3}]  # the later version is shown
    chat.option(seed=9, max_tokens=11)
    for _ in range(2):
        for fields in sent:
            page.get_by_role("button", name="The request as code").click()
            command = page.locator(".request-code code").inner_text()
            body = json.loads(command[command.index("-d '") + 4 :].strip()[:-1].replace("'\\''", "'"))
            assert {name: body.get(name) for name in ("seed", "top_k", "max_tokens", "continue_final_message")} == {
                "top_k": None, "max_tokens": 4, "continue_final_message": None, **fields,
            }  # fmt: skip
            begun = [{"role": "assistant", "content": beginning}] if "top_k" in fields else []
            assert [message for message in body["messages"] if message["role"] != "system"] == [
                {"role": "user", "content": "Hello"},
                *begun,
            ]
            page.keyboard.press("Escape")
            page.get_by_role("button", name="Earlier version" if "top_k" in fields else "Later version").click()
        page.reload()
        expect(page.locator(".message")).to_have_count(2)


def test_files_of_text_and_what_is_none(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The secret word is zebra.")
    (tmp_path / "x.bin").write_bytes(b"\0\1\2")
    chat.page.get_by_label("Files", exact=True).set_input_files([tmp_path / "notes.txt", tmp_path / "x.bin"])
    expect(chat.page.get_by_role("alert")).to_contain_text("x.bin is not text")
    chat.say("What is the secret word?")
    expect(chat.page.locator(".files")).to_contain_text("notes.txt")
    assert "zebra" in chat.answer.lower()


def test_tool_calls_are_shown_and_answered(chat: Chat) -> None:
    chat.page.get_by_role("button", name="Options").click()
    chat.page.get_by_role("button", name="Example").click()
    chat.page.get_by_label("Tools", exact=True).fill("[1")
    expect(chat.page.get_by_role("alert")).to_contain_text("not JSON")
    chat.page.get_by_role("button", name="All defaults").click()
    chat.page.get_by_role("button", name="Example").click()
    chat.page.get_by_role("button", name="Done").click()
    chat.page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(
            post_data=json.dumps({**route.request.post_data_json, "tool_choice": "required", "temperature": 0})
            if not any(m["role"] == "tool" for m in route.request.post_data_json["messages"])
            else route.request.post_data
        ),
    )
    chat.say("What is the weather in Rome?")
    call = chat.page.locator(".tool-call")
    expect(call).to_contain_text("get_weather")
    expect(call).to_contain_text("Rome")
    call.get_by_role("textbox").fill("sunny, 25 degrees")
    with chat.answering():
        call.get_by_role("button", name="Send").click()
    expect(chat.page.locator(".tool-result")).to_have_text("sunny, 25 degrees")
    assert chat.page.locator(".message.assistant").count() == 2


def test_calls_of_several_tools_are_answered_one_by_one(page: Page, server: RunningServer) -> None:
    """In any order, each once, in every version; the model is asked when all have a result."""
    chat = Chat(page, server.url)
    calls = [
        {"index": i, "id": f"call_{i}", "function": {"name": name, "arguments": "{}"}}
        for i, name in enumerate(("weather", "time"))
    ]
    show_events(page, [{"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}]}])
    chat.say("Weather and time?")
    show_answer(page, "Fine.")
    call = page.locator(".tool-call")
    call.nth(0).get_by_role("textbox").fill("half")
    call.nth(1).get_by_role("textbox").fill("noon")
    call.nth(1).get_by_role("button", name="Send").dblclick()
    expect(call.get_by_role("textbox")).to_have_count(1)
    call.nth(0).get_by_role("textbox").fill("sunny")
    with chat.answering():
        call.nth(0).get_by_role("button", name="Send").click()
    expect(call.get_by_role("textbox")).to_have_count(0)
    expect(page.locator(".tool-result")).to_have_text(["noon", "sunny"])
    # another result for the first one: the second one is asked for again
    page.locator(".message.tool").first.get_by_role("button", name="Edit").click()
    page.keyboard.press("End")
    page.keyboard.type(" sharp")
    page.get_by_role("button", name="Send as a new branch").click()
    expect(page.locator(".tool-result")).to_have_text(["noon sharp"])
    expect(call.get_by_role("textbox")).to_have_count(1)
    call.nth(0).get_by_role("textbox").fill("rain")
    with page.expect_request("**/chat/completions") as asked, chat.answering():
        page.keyboard.press("Enter")
    given = [(m["tool_call_id"], m["content"]) for m in asked.value.post_data_json["messages"] if m["role"] == "tool"]
    assert given == [("call_1", "noon sharp"), ("call_0", "rain")]


def test_a_message_is_edited_while_an_answer_grows(page: Page, server: RunningServer) -> None:
    """By the keyboard alone; to leave the editor does not stop the answer."""
    chat = Chat(page, server.url)
    page.route("**/v1/chat/completions", lambda route: None)
    chat.say("Hello", wait=False)
    growing = page.locator(".message[aria-busy=true]")
    expect(growing).to_have_count(1)
    edit = page.locator(".message.user").get_by_role("button", name="Edit")
    edit.press("Enter")
    page.keyboard.type("!")
    expect(page.get_by_label("Edit the message")).to_have_value(re.compile("!"))
    page.keyboard.press("Escape")
    expect(edit).to_be_focused()
    expect(growing).to_have_count(1)
    page.keyboard.press("Escape")
    expect(growing).to_have_count(0)


DRAG = """([target, kind]) => { const data = new DataTransfer();
    if (kind === "file") data.items.add(new File(["x"], "x.txt")); else data.setData("text/plain", "https://example.org");
    const made = ["dragover", "drop"].map((name) => new DragEvent(name, {bubbles: true, cancelable: true, dataTransfer: data}));
    return made.map((event) => document.querySelector(target).dispatchEvent(event)); }"""


def test_text_is_dropped_into_the_message(page: Page, server: RunningServer) -> None:
    """By the browser. A link that is dropped beside it does not leave the page; files are taken anywhere."""
    Chat(page, server.url)
    field = ".composer textarea"
    assert page.evaluate(DRAG, [field, "text"]) == [True, True], "the browser puts it in"
    assert page.evaluate(DRAG, ["main", "text"]) == [False, False]
    assert page.evaluate(DRAG, [field, "file"]) == page.evaluate(DRAG, ["main", "file"]) == [False, False]
    expect(page.locator(".attached li")).to_have_count(2)


def test_images_by_file_paste_drop_and_camera(page: Page, vision: RunningServer, context: BrowserContext) -> None:
    chat = Chat(page, vision.url)
    chat.option(temperature=0, max_tokens=20)
    picture = """() => { const c = document.createElement('canvas'); c.width = c.height = 96; const g = c.getContext('2d');
        g.fillStyle = 'red'; g.fillRect(20, 20, 50, 50);
        return new Promise((done) => c.toBlob((blob) => done(new File([blob], 'red.png', {type: 'image/png'})))); }"""
    for event, target, holder in (("paste", ".composer textarea", "clipboardData"), ("drop", "body", "dataTransfer")):
        page.evaluate(
            f"""async () => {{ const data = new DataTransfer(); data.items.add(await ({picture})());
            const init = {{bubbles: true, cancelable: true, {holder}: data}};
            const made = new {"ClipboardEvent" if event == "paste" else "DragEvent"}('{event}', init);
            document.querySelector('{target}').dispatchEvent(made); }}"""
        )
    expect(page.locator(".attached img")).to_have_count(2)
    page.get_by_role("button", name="Take away image 2").click()
    page.get_by_role("button", name="Camera").click()
    wait_for(lambda: page.locator("dialog video").evaluate("(video) => video.videoWidth > 0"))
    page.get_by_role("button", name="Take the picture").click()
    expect(page.locator(".attached img")).to_have_count(2)
    chat.say("What is in the image?")
    expect(page.locator(".message.user .images img")).to_have_count(2)
    assert chat.answer


def test_a_key_is_asked_for_and_stays_in_the_tab(
    browser: Browser, keyed: RunningServer, troubles: Troubles, page: Page
) -> None:
    troubles.expected = ("401",)
    page.goto(keyed.url)
    page.wait_for_selector("dialog")
    page.get_by_label("Key", exact=True).fill("wrong")
    page.get_by_role("button", name="Use the key").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Key", exact=True).fill("user-key")
    page.get_by_role("button", name="Use the key").click()
    expect(page.locator("dialog")).to_have_count(0)
    chat = Chat(page, keyed.url)
    chat.option(max_tokens=10)
    chat.say("Hello")
    assert page.evaluate(
        "[Object.values(sessionStorage).filter((text) => text.includes('user-key')).length, document.cookie, "
        "JSON.stringify(localStorage).includes('user-key')]"
    ) == [1, "", False]
    other = browser.new_context().new_page()
    other.goto(keyed.url)
    other.wait_for_selector("dialog")
    other.context.close()


def test_every_paragraph_has_the_direction_of_its_words(page: Page, server: RunningServer) -> None:
    chat = Chat(page, server.url)
    show_answer(page, "שלום, עולם.\n\nHello, world.\n\n* مرحبا\n* Hello")
    chat.say("مرحبا!")
    sides = page.evaluate(
        """() => [...document.querySelectorAll('.markdown p, .markdown li')].map((paragraph) => {
            const [box, range] = [paragraph.getBoundingClientRect(), document.createRange()];
            range.selectNodeContents(paragraph);
            return Math.abs(range.getBoundingClientRect().left - box.left) < 2 ? 'left' : 'right'; })"""
    )
    assert sides == ["right", "left", "right", "left"]


def test_what_office_programs_put_beside_a_text(page: Page, server: RunningServer) -> None:
    """A picture of it: what is pasted is the text. And a file of text in another encoding is refused, rather than spoiled."""
    Chat(page, server.url)
    was_taken = page.evaluate(
        """() => { const data = new DataTransfer(); data.setData('text/plain', 'two cells');
            data.items.add(new File(['x'], 'cells.png', { type: 'image/png' }));
            const paste = new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
            document.querySelector('.composer textarea').dispatchEvent(paste); return paste.defaultPrevented; }"""
    )
    assert not was_taken, "the browser pastes it"
    expect(page.get_by_role("alert")).to_have_count(0)
    files = page.get_by_label("Files", exact=True)
    files.set_input_files({"name": "old.txt", "mimeType": "text/plain", "buffer": "caf\xe9".encode("latin-1")})
    expect(page.get_by_role("alert")).to_contain_text("old.txt is not text in UTF-8")
    files.set_input_files({"name": "new.txt", "mimeType": "text/plain", "buffer": "caf\xe9 \ufffd".encode()})
    expect(page.locator(".attached li")).to_have_count(1)
