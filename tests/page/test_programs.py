"""Programs on view: a forked run while it happens, and recordings from disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
from playwright.sync_api import Page, Route, expect

from tests.conftest import RunningServer
from tests.page.conftest import SHOTS, look, wait_for
from tests.page.test_look import serious

PROGRAM = """
import sglang as sgl
sgl.set_default_backend(sgl.RuntimeEndpoint({url!r}))

@sgl.function
def tips(s):
    s += sgl.user("Name a topic about a healthy life, in one word.")
    s += sgl.assistant(sgl.gen("topic", max_tokens=8, temperature=0))
    forks = s.fork(3)
    for i, fork in enumerate(forks):
        fork += sgl.user(f"Give tip number {{i + 1}}.")
        fork += sgl.assistant(sgl.gen("tip", max_tokens=40, temperature=0, ignore_eos=True))
    forks.join()
    s += sgl.user("Is that good advice?")
    s += sgl.assistant(sgl.gen("verdict", regex="(yes|no)"))

state = tips.run({options})
print(state["verdict"])
"""
RUNS = """async () => { const { runs } = await import('/page/js/machine/live.js');
    return [...runs.values()].map((run) => [...run.calls.values()].map((call) =>
        [call.branch, call.name, call.completion ?? null, Boolean(call.ended), call.constraint])); }"""


def run(url: str, options: str = "", **environment: str) -> None:
    import os

    code = PROGRAM.format(url=url, options=options)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("yes", "no")


def test_a_forked_program_live(page: Page, server: RunningServer) -> None:
    look(page, server.url, "programs")
    expect(page.get_by_text("Run a program against this server")).to_be_visible()
    run(server.url)
    wait_for(lambda: bool(page.evaluate(RUNS)) and all(call[3] for call in page.evaluate(RUNS)[0]))
    calls = page.evaluate(RUNS)[0]
    written = [call for call in calls if call[2]]
    assert sorted(call[0] for call in written) == ["0", "0", "0.0", "0.1", "0.2"]
    assert {call[1] for call in calls} == {""}, "names are told only if the program says so"
    assert [call[4] for call in written] == [False] * 4 + [True]
    expect(page.locator(".time-line .fork")).to_have_count(3)
    run(server.url, SGLANG_TRACE="server")
    wait_for(lambda: len(page.evaluate(RUNS)) == 2)
    wait_for(lambda: {call[1] for call in page.evaluate(RUNS)[1]} >= {"topic", "tip", "verdict"})
    page.get_by_role("group", name="Runs").get_by_role("button").first.click()
    page.locator(".call.free").last.click()
    expect(page.locator(".call-text")).to_contain_text("Give tip number")
    assert page.locator(".span-model").count() >= 1, "what the model said before is told apart"
    assert serious(page) == []
    page.screenshot(path=SHOTS / "programs.png")
    said = page.evaluate(
        """async () => { const { runs } = await import('/page/js/machine/live.js');
            return [...[...runs.values()][1].calls.values()].find((call) => call.name === 'tip' && call.branch === '0.2').text; }"""
    )
    page.get_by_role("button", name=re.compile("^branch 0.2: tip")).click()
    page.get_by_role("button", name="The request as code").click()
    for form in ("curl", "openai", "sglang"):
        page.get_by_role("tab", name=form).click()
        code = page.locator(".request-code pre").inner_text()
        command = ["bash", "-c", code] if form == "curl" else [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (form, done.stderr, code)
        answer = json.loads(done.stdout)["text"] if form == "curl" else done.stdout
        assert answer.strip() == said.partition("<|im_end|>")[0].strip(), (form, code)


def test_a_choice_is_one_call_with_its_scores(page: Page, server: RunningServer) -> None:
    """The program that the empty view shows: it runs as it stands there, and its `select` is not a request for each choice."""
    look(page, server.url, "programs")
    code = page.locator(".empty-programs pre").inner_text()
    assert f'"{server.url}"' in code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() in ("yes", "no"), done.stderr
    wait_for(lambda: bool(page.evaluate(RUNS)) and all(call[3] for call in page.evaluate(RUNS)[0]))
    page.locator(".call.constrained").click()
    text = page.locator(".call-text")
    expect(text).to_contain_text("2 choices scored")
    scored = text.locator(".scored li").all_inner_texts()
    assert sorted(line.split()[0] for line in scored) == ["no", "yes"]
    assert all(float(line.split()[1]) < 0 for line in scored)
    expect(text.locator(".scored li.on code")).to_have_text(done.stdout.strip())


def test_a_run_that_began_before_it_is_looked_at(page: Page, server: RunningServer) -> None:
    """What ends without having begun on view is not drawn: it has no place on the line of time."""
    call = {"run": "a" * 32, "branch": "0", "rid": "x", "ended": 2.0, "text": "late"}
    later = {"run": "b" * 32, "branch": "0", "rid": "y", "at": 1.0, "ended": 2.0, "prompt": "", "prompt_len": 1, "text": "seen"}
    body = "".join(f"data: {json.dumps({'call': one})}\n\n" for one in (call, later))
    page.route("**/page/live", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.goto(f"{server.url}/#programs")
    expect(page.locator(".time-line .call")).to_have_count(1)
    expect(page.get_by_role("group", name="Runs")).to_have_count(0)


def test_a_call_whose_end_is_not_seen_is_over(page: Page, server: RunningServer) -> None:
    """Of what ends while nobody looks, nothing is told. How long it ran goes by one clock, the server's or the browser's."""
    calls = [{"run": f"{i:032}", "branch": "0", "rid": f"{i}", "at": 1.0, "prompt": "", "prompt_len": 1} for i in range(20)]
    told = calls[:1]

    def tell(route: Route) -> None:
        body = "".join(f"data: {json.dumps({'call': call})}\n\n" for call in told)
        route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/page/live", tell)
    page.goto(f"{server.url}/#programs")
    call = page.locator(".time-line .call.free")
    expect(call).to_have_count(1)
    assert re.search(r"request, [\d.]+ m?s$", call.get_attribute("aria-label") or "")
    call.click()
    expect(page.locator(".call-text")).to_contain_text("its end was not seen")
    told.extend(calls[1:])
    runs = page.get_by_role("group", name="Runs").get_by_role("button")
    expect(runs).to_have_count(len(calls))
    expect(page.locator(".call-text")).to_be_visible()
    expect(runs.last).to_have_attribute("aria-pressed", "true")


def test_names_of_calls_are_text(page: Page, server: RunningServer) -> None:
    """Whoever may send requests says what their calls are called. Runs with names that the language never gives are not shown."""
    look(page, server.url, "programs")
    expect(page.locator(".empty-programs")).to_be_visible()
    evil = "<img src=x onerror=window.pwned=1>"
    deep = ".".join(map(str, range(21)))
    for name in (f"{evil}/0.{evil}", "/", "a" * 3000 + "/0", "a" * 32 + "/0", f"ab/{deep}"):
        headers = {"X-Sglang-Run": name, "X-Sglang-Variable": evil}
        body = {"text": evil, "sampling_params": {"max_new_tokens": 2}}
        httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=60, trust_env=False).raise_for_status()
    expect(page.get_by_role("group", name="Runs").get_by_role("button")).to_have_count(2)
    page.locator(".time-line .call").first.click()
    expect(page.locator(".call-text")).to_contain_text(evil)
    assert page.locator("main img").count() == 0
    assert page.evaluate("() => window.pwned") is None
    page.set_viewport_size({"width": 360, "height": 740})
    for button in page.get_by_role("group", name="Runs").get_by_role("button").all():
        button.click()
        assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_recording_from_disk(page: Page, server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(server.url, options=f"record={str(path)!r}")
    page.goto(f"{server.url}/#programs")
    page.get_by_label("Recording").set_input_files(path)
    expect(page.locator(".time-line .call")).not_to_have_count(0)
    expect(page.locator(".time-line .fork")).to_have_count(3)
    page.locator(".call.constrained").first.click()
    expect(page.locator(".call-text")).to_contain_text("constrained by regex")
    (tmp_path / "x.jsonl").write_text('{"kind": "run"}\nno json')
    page.get_by_label("Recording").set_input_files(tmp_path / "x.jsonl")
    expect(page.get_by_role("alert")).to_contain_text("line 2 is not JSON")
