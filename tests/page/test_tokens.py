"""Answers token by token: probabilities, alternatives, origins, and going on from another token."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RunningServer
from tests.page.conftest import SHOTS, Chat
from tests.page.test_look import serious, show_events

FRANCE = "What is the capital of France? Answer in one sentence."


@pytest.fixture
def chat(page: Page, server: RunningServer) -> Chat:
    chat = Chat(page, server.url)
    chat.option(temperature=0, max_tokens=40)
    return chat


def test_another_token_begins_a_branch(chat: Chat) -> None:
    page = chat.page
    chat.say(FRANCE)
    plain = chat.answer
    page.get_by_role("button", name="Tokens").click()
    with chat.answering():
        page.get_by_role("button", name="Answer again").click()
    tokens = page.locator(".tokens .token")
    texts = tokens.all_inner_texts()
    assert "".join(texts).startswith(plain), "to look at the tokens changes nothing"
    assert texts[-1].startswith("<|im_end|>")
    tokens.nth(3).hover()
    box = page.locator(".alternatives")
    expect(box).to_contain_text("%")
    assert box.locator("li").count() == 8
    assert serious(page) == []
    page.screenshot(path=SHOTS / "tokens.png")
    other = box.locator("li button:not([disabled])").first
    chosen = other.locator("code").inner_text()
    with chat.answering():
        other.click()
    branched = page.locator(".tokens .token").all_inner_texts()
    assert branched[:3] == texts[:3] and branched[3] == chosen != texts[3]
    expect(page.locator(".tokens .token.chosen")).to_have_count(1)
    expect(page.get_by_role("group", name="Versions of this message")).to_contain_text("3/3")
    page.get_by_role("button", name="Text", exact=True).click()
    assert chat.answer.startswith("".join(texts[:3]) + chosen)
    page.get_by_role("button", name="Tokens").click()
    page.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    expect(box).to_be_visible()
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)


def events_of(words: list[str], scores: list[float]) -> list[dict[str, object]]:
    """An answer with the origins of its tokens and, if there are any, their log probabilities."""
    origins = [{"token": word, "bytes": list(word.encode()), "origin": "sampled"} for word in words]
    logprobs = [
        {"token": word, "bytes": [], "logprob": score, "top_logprobs": []} for word, score in zip(words, scores, strict=False)
    ]
    choice = {"index": 0, "delta": {"content": "".join(words)}, "token_origins": origins, "logprobs": {"content": logprobs}}
    return [{"choices": [{**choice, "finish_reason": "stop"}]}]


def test_probabilities_are_those_of_their_tokens(chat: Chat) -> None:
    """Also where an answer without probabilities, or without all of them, goes on."""
    page = chat.page
    page.get_by_role("button", name="Origins").click()
    show_events(page, events_of(["One", " two"], []))
    chat.say("Count")
    for words, scores in (([" three", " four"], [-3.0]), ([" five"], [-0.5])):
        show_events(page, events_of(words, scores))
        with chat.answering():
            page.get_by_role("button", name="Go on with this answer").click()
    page.get_by_role("button", name="Tokens").click()
    page.locator(".tokens").focus()
    for token in ("One –", " two –", " three 5.0 %", " four –", " five 60.7 %"):
        page.keyboard.press("ArrowRight")
        expect(page.locator(".alternatives p").first).to_contain_text(token)


def test_origins_are_told_apart(chat: Chat, server: RunningServer) -> None:
    page = chat.page
    page.get_by_role("button", name="Origins").click()
    chat.option(temperature=0, max_tokens=80, system="")
    words = "red green blue yellow violet orange " * 8
    chat.say(f"Repeat these words: {words}")
    kinds = page.locator(".tokens .token").evaluate_all("(all) => all.map((token) => token.className)")
    body = {
        "messages": [{"role": "user", "content": f"Repeat these words: {words}"}],
        "temperature": 0,
        "max_tokens": 80,
        "return_token_origins": True,
    }
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60, trust_env=False).json()
    assert len(kinds) == len(reply["choices"][0]["token_origins"])
    assert any("from-draft" in kind for kind in kinds) and any("from-sampled" in kind for kind in kinds)
