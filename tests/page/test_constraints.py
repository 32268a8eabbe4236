"""The editor of constraints: what is wrong, and where; and answers as forms that fill."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RunningServer
from tests.page.conftest import SHOTS, Troubles, wait_for
from tests.page.test_look import serious

WRONG = [
    ("JSON schema", '{"type": "object",}', "}", "comma too many"),
    ("JSON schema", '{"type": "object" "x": 1}', '"', "comma or } is missing"),
    ("JSON schema", '{\n  "type": "objekt"\n}', "objekt", "Invalid type"),
    ("JSON schema", '{"properties": {"a": {"$ref": "#/$defs/x"}}}', '"#/$defs/x"', "leads to nothing"),
    ("JSON schema", '{"type": "object", "required": "a"}', '"a"', "must be a list of strings"),
    ("Regular expression", "ab(?=c)d", "(", "look-ahead"),
    ("Regular expression", "x[z-a]", "z-a", "invalid character class range"),
    ("Regular expression", "(a|b", "(", "unclosed group"),
    ("Grammar", 'root ::= "a" | other\n', "other", "not found"),
    ("Grammar", 'root ::= "a" ( \n\nx ::= "b"', None, "Expected"),
]


def wait_until_checked(page: Page, message: str) -> None:
    expect(page.locator("#constraint-problem")).to_contain_text(message)


@pytest.mark.parametrize(("kind", "text", "marked", "message"), WRONG)
def test_mistakes_are_told_at_their_place(
    page: Page, server: RunningServer, kind: str, text: str, marked: str | None, message: str, troubles: list[str]
) -> None:
    troubles.expected = ("400",)  # type: ignore[attr-defined]
    page.goto(f"{server.url}/#constraints")
    page.get_by_role("button", name=kind).click()
    page.get_by_role("textbox", name=kind).fill(text)
    wait_until_checked(page, message)
    mark = page.locator(".editor-back mark")
    expect(mark).to_have_count(1)
    if marked is not None:
        assert marked in mark.inner_text()
    expect(page.locator("#constraint-problem")).to_contain_text("line ")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    page.get_by_label("Examples").select_option("0")
    wait_until_checked(page, "The server can follow it.")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_a_constraint_is_checked_again(page: Page, server: RunningServer, troubles: Troubles) -> None:
    """With another key, and when the server is there again."""
    troubles.expected = ("401", "net::")
    page.route("**/generate", lambda route: route.fulfill(status=401, json={"error": {"message": "a key is needed"}}))
    page.goto(f"{server.url}/#constraints")
    page.get_by_label("Key", exact=True).fill("key")
    page.unroute("**/generate")
    page.get_by_role("button", name="Use the key").click()
    wait_until_checked(page, "The server can follow it.")
    page.route("**/generate", lambda route: route.abort())
    page.get_by_role("textbox", name="JSON schema").fill('{"type": "integer"}')
    wait_until_checked(page, "The server does not answer.")
    page.unroute("**/generate")
    wait_until_checked(page, "The server can follow it.")
    place = "async () => (await import('/page/js/constraints/places.js')).placeOf('ebnf', 'x', 'at 0(0)')[0]"
    assert page.evaluate(place) == 0, "no place is before the beginning"


def test_an_answer_fills_a_form(page: Page, server: RunningServer) -> None:
    page.goto(f"{server.url}/#constraints")
    wait_until_checked(page, "The server can follow it.")
    assert serious(page) == []
    expect(page.locator(".form .coming").first).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    filled = page.locator(".form input:not([type=checkbox])")
    wait_for(lambda: filled.first.input_value() != "")
    expect(page.get_by_role("region", name="Answer")).to_have_attribute("aria-busy", "false", timeout=60_000)
    assert page.locator(".form .coming").count() == 0
    assert page.locator(".choice.on").count() == 1
    assert serious(page) == []
    page.screenshot(path=SHOTS / "constraints.png")
    name = filled.first.input_value()
    page.get_by_role("button", name="Text").click()
    answer = json.loads(page.locator(".answer-text").inner_text())
    assert answer["name"] == name and 2 <= len(answer["skills"]) <= 4


def test_a_request_as_code_runs(page: Page, server: RunningServer) -> None:
    import subprocess
    import sys

    page.goto(f"{server.url}/#constraints")
    page.get_by_role("button", name="Regular expression").click()
    page.get_by_label("Examples").select_option("0")
    page.get_by_role("textbox", name="Question").fill("Is a 'whale' a \"fish\"?\n\\n – 🐋")
    page.get_by_role("button", name="Code").click()
    for name in ("curl", "openai", "sglang"):
        page.get_by_role("tab", name=name).click()
        code = page.locator(".request-code pre").inner_text()
        command = ["bash", "-c", code] if name == "curl" else [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (name, done.stderr, code)
        assert "because" in done.stdout, (name, code)
