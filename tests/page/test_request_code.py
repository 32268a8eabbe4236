"""The request behind anything on the page, as code: what is copied is run, and gives the answer that it stands below."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from tests.conftest import RunningServer
from tests.page.conftest import look, wait_for

FORMS = ("curl", "openai", "sglang")
LONG = "A list of words that nobody needs: " + " ".join(f"word{i}" for i in range(300)) + ".\n"
"""of more tokens than viewers are told of a prompt"""
SEEING = """
import sglang as sgl
sgl.set_default_backend(sgl.RuntimeEndpoint({url!r}))

@sgl.function
def seen(s):
    s += sgl.user({long!r} + sgl.image({image!r}) + "What is this?" + sgl.image({image!r}))
    s += sgl.assistant(sgl.gen("seen", max_tokens=10, temperature={temperature}))
    s += sgl.user("Is it red?")
    s += sgl.assistant(sgl.select("red", choices=["yes", "no", "I cannot say"]))

@sgl.function
def read(s):
    s += {long!r}
    s += sgl.gen("next", max_tokens=10, temperature={temperature}, regex="[a-z ]+")
    s += sgl.select("end", choices=[" and so on", ".", " etc."], choices_method=sgl.unconditional_likelihood_normalized)

for program in (seen, read):
    program.run({options}).sync()
"""
CALLS = """async () => { const { runs } = await import('/page/js/machine/live.js');
    return [...runs.values()].map((run) => [run.id, [...run.calls.values()].map((call) =>
        ({rid: call.rid, name: call.name, text: call.text ?? null, ended: Boolean(call.ended), scores: call.choices ?? null}))]); }"""


def run_program(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copied(page: Page, form: str) -> str:
    page.get_by_role("tab", name=form).click()
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    text: str = page.evaluate("navigator.clipboard.readText()")
    expect(page.get_by_role("button", name="Copy the code")).to_be_visible()
    return text


def said(form: str, code: str, folder: Path) -> Any:
    """What the code prints, run from a file as a user would: an image is longer than an argument of a command may be."""
    path = folder / f"code-{form}"
    path.write_text(code)
    done = subprocess.run(
        ["bash" if form == "curl" else sys.executable, str(path)], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, (form, done.stderr, code[:3000])
    return json.loads(done.stdout) if form == "curl" else done.stdout.strip()


def texts_of(page: Page, folder: Path, forms: tuple[str, ...] = FORMS) -> dict[str, Any]:
    """What each form of the code of the call that is on view says."""
    page.get_by_role("button", name="The request as code").click()
    expect(page.locator(".request-code")).to_be_visible()
    found = {form: said(form, copied(page, form), folder) for form in forms}
    page.keyboard.press("Escape")
    return found


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Of more bytes than a command line takes."""
    path = tmp_path / "noise.png"
    Image.frombytes("RGB", (240, 240), os.urandom(240 * 240 * 3)).save(path)
    assert path.stat().st_size > 1 << 17
    return path


@pytest.fixture
def reader(context: BrowserContext, page: Page) -> Page:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    return page


def pick(page: Page, name: str) -> None:
    page.locator(".time-line").get_by_role("button", name=re.compile(f": {name}, ")).last.click()
    expect(page.locator(".call-text h3")).to_contain_text(name)


def test_code_of_calls_with_images_long_prompts_and_choices(
    reader: Page, vision: RunningServer, picture: Path, tmp_path: Path
) -> None:
    page = reader
    look(page, vision.url, "programs")
    recording = tmp_path / "run.jsonl"
    code = SEEING.format(url=vision.url, long=LONG, image=str(picture), temperature=0.9, options=f"record={str(recording)!r}")
    run_program(code, SGLANG_TRACE="server")
    wait_for(
        lambda: len(page.evaluate(CALLS)) == 2 and all(call["ended"] for _, calls in page.evaluate(CALLS) for call in calls)
    )
    for (run, calls), names in zip(page.evaluate(CALLS), (("seen", "red"), ("next", "end")), strict=True):
        page.get_by_role("group", name="Runs").get_by_role("button", name=f"run {run[:6]}").click()
        for name in names:
            call = next(call for call in reversed(calls) if call["name"] == name)
            pick(page, name)
            check(texts_of(page, tmp_path), call)


def test_code_of_a_recording(reader: Page, vision: RunningServer, picture: Path, tmp_path: Path) -> None:
    """Opened where nothing is known of it but the file: with its images, which are in it once, and with an adapter's name."""
    page, recording = reader, tmp_path / "run.jsonl"
    options = f"record={str(recording)!r}"
    run_program(SEEING.format(url=vision.url, long=LONG, image=str(picture), temperature=0, options=options))
    rows = [json.loads(line) for line in recording.read_text().splitlines()]
    assert [row["kind"] for row in rows].count("image") == 1
    asked = {row["name"]: row["value"] for row in rows if row["kind"] == "call"}
    page.goto(f"{vision.url}/#programs")
    page.get_by_label("Recording").set_input_files(recording)
    for title, names in (("seen", ("seen", "red")), ("read", ("next", "end"))):
        page.get_by_role("group", name="Runs").get_by_role("button", name=title).click()
        for name in names:
            pick(page, name)
            answer = asked[name]["answer"]
            found = texts_of(page, tmp_path, FORMS if name in ("seen", "red") else FORMS[:1])
            scores = answer.get("meta", {}).get("normalized_prompt_logprobs")
            choices = list(zip(asked[name]["options"]["choices"], scores, strict=True)) if scores else None
            said = answer["decision"] if scores else answer["texts"][0]
            check({"sglang": said.strip(), "openai": None, **found}, {"name": name, "text": said, "scores": choices})
    lines = [line for line in recording.read_text().splitlines() if json.loads(line)["kind"] != "image"]
    call = json.loads(next(line for line in lines if '"seen"' in line and '"call"' in line))
    call["value"]["options"]["lora"] = "poet"
    recording.write_text("\n".join([lines[0], json.dumps(call)]))
    page.get_by_label("Recording").set_input_files(recording)
    pick(page, "seen")
    page.get_by_role("button", name="The request as code").click()
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    for form, adapter in zip(FORMS, ('"lora_path": "poet"', '"lora_path": "poet"', 'lora="poet"'), strict=True):
        page.get_by_role("tab", name=form).click()
        code = page.locator(".request-code code")
        expect(code).to_contain_text(f"# image-1 stands for a file of {picture.stat().st_size} bytes with the SHA-256 {digest}")
        expect(code).to_contain_text(adapter)


def check(found: dict[str, Any], call: dict[str, Any]) -> None:
    """What the forms of its code say is what the call said."""
    answer = call["text"].partition("<|im_end|>")[0].strip()
    assert found["sglang"] == answer or (call["name"] == "end" and found["sglang"])
    if call["scores"] is None:
        assert found["curl"]["text"].strip() == answer and found["openai"] in (answer, None)
        return
    for reply in (found["curl"], ast.literal_eval(found["openai"] or "[]")):
        if reply:
            assert_scores(reply, call["scores"])


def assert_scores(reply: Any, scores: list[tuple[str, float]]) -> None:
    if isinstance(reply, dict):
        reply = reply["choices"]
    if "normalized" in reply[0]:
        assert [one["normalized"] for one in reply] == pytest.approx([score for _, score in scores])
    else:
        assert len(reply) == len(scores) + 1 and "meta_info" in reply[0]
