"""`sglang batch`: whole, resumed, killed in the middle, and with files that are no batch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sglang.commands.arguments import CommandError
from sglang.commands.batch import batch, read_done, read_items
from sglang.common.batch_lines import seed_of
from tests.conftest import RunningServer, package_environ

pytestmark = pytest.mark.cluster


def line(name: str, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": f"{name} a b"}], "max_tokens": 6, "temperature": 1.0, **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def answers(path: Path) -> dict[str, Any]:
    """The text of each answer; the status where it is none."""
    found = {}
    for text in path.read_text().splitlines():
        row = json.loads(text)
        body, status = row["response"]["body"], row["response"]["status_code"]
        assert row["custom_id"] not in found and row["error"] is None
        found[row["custom_id"]] = body["choices"][0]["message"]["content"] if status == 200 else status
    return found


def test_every_line_is_answered_whatever_its_order_and_the_rest_after_a_stop(alone: RunningServer, tmp_path: Path) -> None:
    lines = [line(f"r{i}", seed=3) if i % 2 else line(f"r{i}") for i in range(12)]
    lines.append(line("wrong", temperature=-1))
    source, first, other = write(tmp_path / "in", lines), tmp_path / "out", tmp_path / "other"
    flags = ["--url", alone.url, "--window", "3"]
    assert batch(["-i", str(source), "-o", str(first), *flags]) == 1  # one line is refused
    found = answers(first)
    assert len(found) == 13 and found["wrong"] == 400
    assert batch(["-i", str(write(tmp_path / "shuffled", lines[::-1])), "-o", str(other), *flags]) == 1
    assert answers(other) == found
    # a run that was stopped: some lines, and half of one
    rows = first.read_text().splitlines(keepends=True)
    first.write_text("".join(rows[:5]) + rows[5][:40])
    assert batch(["-i", str(source), "-o", str(first), *flags]) in (0, 1)
    assert answers(first) == found
    before = first.read_bytes()
    assert batch(["-i", str(source), "-o", str(first), *flags]) == 0
    assert first.read_bytes() == before


def test_half_a_pair_of_surrogates_is_refused_once(alone: RunningServer, tmp_path: Path) -> None:
    """In a name and a message: the server says so, and the next run knows that it has."""
    source, output = write(tmp_path / "in", [line("half \ud800"), line("whole \u00e4")]), tmp_path / "out"
    assert batch(["-i", str(source), "-o", str(output), "--url", alone.url]) == 1
    assert sorted(answers(output)) == ["half \ud800", "whole \u00e4"] and answers(output)["half \ud800"] == 400
    before = output.read_bytes()
    assert batch(["-i", str(source), "-o", str(output), "--url", alone.url]) == 0
    assert output.read_bytes() == before


def test_a_run_that_is_killed_goes_on(alone: RunningServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line(f"r{i}", max_tokens=60, ignore_eos=True) for i in range(30)])
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "sglang.cli",
        "batch",
        "-i",
        str(source),
        "-o",
        str(output),
        "--url",
        alone.url,
        "--window",
        "2",
    ]
    process = subprocess.Popen(command, env=package_environ(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output.exists() and output.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert batch(["-i", str(source), "-o", str(output), "--url", alone.url]) == 0
    found = answers(output)
    whole = tmp_path / "whole"
    assert batch(["-i", str(source), "-o", str(whole), "--url", alone.url]) == 0
    assert found == answers(whole) and len(found) == 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no requests"),
        ("{", "line 1: not valid JSON"),
        ("[]", "line 1: a JSON object"),
        (
            json.dumps(line("a")) + "\n\n" + json.dumps(line("a")),
            "line 3: custom_id 'a' is there a second time; the first is line 1",
        ),
        (json.dumps(line("a") | {"method": "GET"}), "method must be POST"),
        (json.dumps(line("a", "/v1/files")), "url must be one of"),
        (json.dumps(line("a")) + "\n" + json.dumps(line("b", "/v1/completions")), "a batch has one endpoint"),
        (json.dumps(line("a", stream=True)), "not streamed"),
        (json.dumps(line("a") | {"body": 3}), "body must be a JSON object"),
        (json.dumps(line("") | {}), "custom_id must be"),
        (json.dumps(line("a") | {"priority": 3}), "unknown field 'priority'"),
    ],
    ids=range(11),
)
def test_what_is_no_batch_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "in").write_text(text)
    with pytest.raises(CommandError) as error:
        read_items(tmp_path / "in")
    assert words in str(error.value)


def test_an_output_of_something_else_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "notes"
    output.write_text("dear diary\n")
    with pytest.raises(CommandError, match="not an answer of a batch"), output.open("a+b") as file:
        read_done(file)
    assert output.read_text() == "dear diary\n"


def test_one_run_at_a_time(alone: RunningServer, tmp_path: Path) -> None:
    import fcntl

    source, output = write(tmp_path / "in", [line("a")]), tmp_path / "out"
    with output.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="another run"):
            batch(["-i", str(source), "-o", str(output), "--url", alone.url])


def test_a_server_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sglang.common.batch_run.MAX_TRIES", 1)
    source, output = write(tmp_path / "in", [line("a")]), tmp_path / "out"
    assert batch(["-i", str(source), "-o", str(output), "--url", "http://127.0.0.1:1"]) == 1
    assert output.read_text() == "" and "run this again" in capsys.readouterr().err


def test_seeds_come_from_names() -> None:
    assert seed_of("a") == seed_of("a") != seed_of("b") and 0 <= seed_of("a") < 2**31
