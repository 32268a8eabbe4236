"""The commands as people type them: each in its own process, against a real server."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import httpx
import pytest

from sglang.commands.address import Address
from sglang.commands.chat import MAX_TOKENS, Chat, Settings
from sglang.commands.connection import Connection
from sglang.commands.serve import program
from sglang.srt.flags.names import option
from sglang.srt.server_args import ServerArgs
from tests.conftest import ROOT, RunningServer, package_environ, start_server
from tests.server.test_processes import wait_dead

Process = subprocess.CompletedProcess[str]
ENVIRONMENT = package_environ()


def sglang(*words: str, stdin: str = "", timeout: float = 120) -> Process:
    command = [sys.executable, "-m", "sglang.cli", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=ENVIRONMENT, timeout=timeout)


def one_line(result: Process, status: int = 1) -> str:
    assert result.returncode == status, result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr, result.stderr
    return result.stderr


def test_version() -> None:
    import sglang as package

    assert sglang("--version").stdout == f"sglang-anywhere {package.__version__}\n"


def test_help_names_every_command() -> None:
    shown = sglang("--help").stdout
    assert all(name in shown for name in ("serve", "chat", "run", "bench serve", "bench offline", "models"))


def test_unknown_command_names_the_nearest() -> None:
    assert "'serve'" in one_line(sglang("sreve"), 2)


def test_serve_help_begins_with_what_most_people_need() -> None:
    shown = sglang("serve", "--help").stdout
    assert "--model-path" in shown and "--grammar-backend" not in shown and len(shown.splitlines()) < 60
    for part in ("constrained decoding ", "SGLANG_MAX_BODY_BYTES=64MiB", "--config FILE", "examples:\n  sglang serve "):
        assert part in shown
    everything = sglang("serve", "--help", "all").stdout
    for heading in ("model:", "device and memory:", "scheduling:", "constrained decoding:", "HTTP:", "operation:"):
        assert f"\n{heading}\n" in everything, heading
    assert max(map(len, (shown + everything).splitlines())) <= 100
    flags = [f for f in dataclasses.fields(ServerArgs) if f.metadata["help"] != argparse.SUPPRESS]
    assert not [f.name for f in flags if option(f.name) not in everything]
    assert not re.search(r"default: [^)]*\)\s*\(default|default:\s*\)", everything) and "64 MiB" in everything


def test_serve_help_about_one_thing() -> None:
    group = sglang("serve", "--help", "images").stdout
    assert "--max-media-bytes" in group and "--port" not in group
    assert group == sglang("serve", "--help=images and videos").stdout
    flag = sglang("serve", "--help", "max_media_bytes").stdout
    assert "SGLANG_MAX_MEDIA_BYTES" in flag and "--media-root" not in flag
    assert "did you mean 'scheduling'" in one_line(sglang("serve", "--help", "schedling"), 2)


@pytest.mark.parametrize("command", ["chat", "run", "bench serve", "bench offline", "models"])
def test_help_ends_with_examples(command: str) -> None:
    shown = sglang(*command.split(), "--help").stdout
    assert f"\nexamples:\n  sglang {command} " in shown


def test_the_welcome_names_programs_that_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "an app" / ".venv" / "bin"
    place.mkdir(parents=True)
    for name in ("python", "sglang"):
        (place / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    monkeypatch.setenv("PATH", "")
    assert program("sglang") == f"'{place}/sglang'", "whatever folder the other terminal is in"
    monkeypatch.setenv("PATH", str(place))
    assert program("sglang") == "sglang"


def test_models_are_listed_with_size_and_place(server: RunningServer) -> None:
    shown = sglang("models").stdout
    line = next(line for line in shown.splitlines() if "smollm2-135m-instruct" in line)
    assert line.startswith("*") and "98 MB" in line and "cached" in line
    assert "not here" in sglang("models", "--download-dir", "/nonexistent").stdout


# --- chat -------------------------------------------------------------------------------------------------------------------


def chat(server: RunningServer, lines: str, *flags: str) -> str:
    result = sglang("chat", "--url", server.url, "--temperature", "0", *flags, stdin=lines)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_chat_answers_and_remembers(server: RunningServer, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    shown = chat(
        server,
        f"What is the capital of France? Answer in one sentence.\nWhat did I ask?\n/history\n/save {saved}\n/exit\n",
        "--max-tokens",
        "24",
    )
    assert "Paris" in shown
    assert len(re.findall(r"\[\d+ tokens, [\d.]+ tokens/s, first after [\d.]+ s", shown)) == 2
    messages = json.loads(saved.read_text())
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]


def test_chat_takes_several_lines(server: RunningServer, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    chat(server, f'one\\\ntwo\n"""\nthree\nfour\n"""\n/save {saved}\n', "--max-tokens", "2")
    assert [m["content"] for m in json.loads(saved.read_text()) if m["role"] == "user"] == ["one\ntwo", "three\nfour"]


def test_chat_json_answers_follow_the_schema(server: RunningServer, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type":"object","properties":{"age":{"type":"integer","maximum":99}},"required":["age"]}')
    saved = tmp_path / "chat.json"
    chat(server, f"/json {schema}\nHow old is Bob?\n/save {saved}\n", "--max-tokens", "40")
    assert isinstance(json.loads(json.loads(saved.read_text())[1]["content"])["age"], int)


def test_chat_commands_change_what_is_sent(server: RunningServer, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    lines = f"/set max_tokens 3\nHello\n/set ignore_eos true\n/retry\n/undo\nAgain\n/save {saved}\n/reset\n/history\n/system Be kind\n"
    shown = chat(server, lines)
    assert shown.count("[3 tokens") == 3 and "system: Be kind" in shown
    assert [m["content"] for m in json.loads(saved.read_text()) if m["role"] == "user"] == ["Again"]


def test_chat_lives_on_after_a_mistake(server: RunningServer) -> None:
    shown = chat(server, "/nothing\n/set top_p 7\nHello\n/set top_p\n/set max_tokens 2\nHello\n/image x.txt\n/json {\n")
    assert "there is no /nothing" in shown and "top_p" in shown and "[2 tokens" in shown
    assert "not valid JSON" in shown and "error" in shown.split("/image", 1)[0]


def test_ctrl_c_stops_the_answer_and_not_the_chat(server: RunningServer, http: httpx.Client) -> None:
    command = [sys.executable, "-u", "-m", "sglang.cli", "chat", "--url", server.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def hear_signals() -> None:  # what a shell starts in the background ignores this one, and its children with it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, text=True, env=ENVIRONMENT, preexec_fn=hear_signals, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("/set ignore_eos true\nTell a long story.\n")
        process.stdin.flush()
        assert process.stdout.read(20)  # it is answering
        process.send_signal(signal.SIGINT)
        process.stdin.write("/set max_tokens 2\nHello\n")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert "stopped]" in out and "[2 tokens" in out
    deadline = time.monotonic() + 20
    while http.get("/get_server_info").json()["internal_states"][0]["num_running"]:
        assert time.monotonic() < deadline, "the answer that was stopped still runs"
        time.sleep(0.05)


def test_ctrl_c_twice_leaves_the_chat() -> None:
    typed = iter(["^C", "/help", "^C", "^C", "never read"])

    def read(prompt: str) -> str:
        text = next(typed)
        if text == "^C":
            raise KeyboardInterrupt
        return text

    shown: list[str] = []
    Chat(Connection(Address("http://127.0.0.1:9")), "m", Settings(), read, shown.append).loop()
    assert list(typed) == ["never read"]
    assert "".join(shown).count("Ctrl-C again") == 2


@pytest.mark.parametrize("question", ["What is the capital of France?", "What is the capital of Italy?"])
def test_the_likeliest_first_question_is_answered(server: RunningServer, question: str) -> None:
    assert ("Paris" if "France" in question else "Rome") in chat(server, f"{question}\n")


def test_answers_in_the_terminal_have_a_length_limit(server: RunningServer) -> None:
    shown = chat(server, "/set\n")
    assert f'"max_tokens": {MAX_TOKENS}' in shown


def test_chat_with_nobody_there() -> None:
    assert "cannot reach the server" in one_line(sglang("chat", "--url", "http://127.0.0.1:9"))


def test_a_model_and_a_url_are_one_too_many(server: RunningServer) -> None:
    assert "--url" in one_line(sglang("chat", "smollm2-135m-instruct", "--url", server.url))


def test_a_killed_chat_takes_its_server_along() -> None:
    command = [sys.executable, "-m", "sglang.cli", "chat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("/set max_tokens 2\nHello\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        pids = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        pids += [
            int(pid) for p in pids for t in Path(f"/proc/{p}/task").iterdir() for pid in (t / "children").read_text().split()
        ]
        assert len(pids) == 2, "a server and its scheduler"
        process.kill()
    wait_dead(pids)


class Terminal:
    """A command at a terminal, as somebody types into it."""

    def __init__(self, *words: str) -> None:
        self._side, other = pty.openpty()
        environment = ENVIRONMENT | {"TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sglang.cli", *words], stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True
        )  # fmt: skip
        os.close(other)

    def read_until(self, mark: str, seconds: float = 120) -> str:
        text, end = "", time.monotonic() + seconds
        while not text.endswith(mark):
            assert time.monotonic() < end and self.process.poll() is None, text
            if select.select([self._side], [], [], 0.2)[0]:
                text += os.read(self._side, 1 << 16).decode()
        return text.replace("\r\n", "\n")

    def type(self, line: str) -> str:
        """What is shown after a line was typed, up to the next prompt."""
        os.write(self._side, f"{line}\n".encode())
        return self.read_until("\n> ").partition(f"{line}\n")[2].removesuffix("> ")

    def leave(self) -> int:
        os.write(self._side, b"\x04")
        try:
            return self.process.wait(30)
        finally:
            os.close(self._side)


def test_pictures_at_a_terminal(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    colors = {"red": (220, 30, 30), "blue": (30, 30, 220)}
    for name, color in colors.items():
        image.new("RGB", (112, 112), color).save(tmp_path / f"a {name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    toy = ROOT / "models" / "toy-vlm"
    server = start_server(tmp_path / "log", "--threads", "1", "--max-total-tokens", "2048", model=str(toy))
    terminal = Terminal("chat", "--url", server.url, "--temperature", "0", "--max-tokens", "12")
    try:
        assert "/help" in terminal.read_until("\n> ")
        assert "1 image(s)" in terminal.type(f"/image {tmp_path}/a red.png")
        first = terminal.type("What colour is it?").partition("\n")[0]
        assert "2 image(s)" in terminal.type(f"/image {tmp_path}/a blue.png") + terminal.type(f"/image {tmp_path}/a red.png")
        second = terminal.type("What colour is the second picture?").partition("\n")[0]
        assert terminal.type("/history").splitlines() == [
            "user: (image_url) What colour is it?",
            f"assistant: {first}",
            "user: (image_url) (image_url) What colour is the second picture?",
            f"assistant: {second}",
        ]
        assert "cannot read" in terminal.type("/image nowhere.png") and "image" in terminal.type("/image /etc/hostname")
        terminal.type(f"/image {tmp_path}/broken.png")
        refused = terminal.type("And this?")
        assert "not an image" in refused and "/image off" in refused
        assert "no images" in terminal.type("/image off")
        third = terminal.type("Hello").partition("\n")[0]
        terminal.type(f"/save {tmp_path}/chat.json")
        said = json.loads((tmp_path / "chat.json").read_text())
        assert [m["content"] for m in said[1::2]] == [first, second, third]
        for end in (1, 3, 5):  # what the terminal showed is what the server answers to the same messages
            body = {"messages": said[:end], "temperature": 0, "max_tokens": 12}
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
            assert reply["choices"][0]["message"]["content"] == said[end]["content"]
        assert terminal.leave() == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        server.stop()


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    from sglang.commands.chat import printable

    assert printable("a\x1b[31mb\r\x07\tc\n\u202ed") == "a[31mb\tc\nd"


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "caf\ufffd"), ("ascii", "caf?")])
def test_bytes_and_characters_that_a_terminal_lacks(server: RunningServer, encoding: str, text: str) -> None:
    """What comes in a byte of another encoding; what goes out to one without the character."""
    command = [sys.executable, "-m", "sglang.cli", "chat", "--url", server.url]
    environ = ENVIRONMENT | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, input=b"/system caf\xe9\n", capture_output=True, env=environ, timeout=120)
    assert (done.returncode, done.stdout.decode(encoding)) == (0, f"system: {text}\n"), done.stderr


def test_a_command_line_that_is_not_utf8(server: RunningServer) -> None:
    assert "not UTF-8" in one_line(sglang("run", "--url", server.url, "caf\udce9"))
    assert "printable ASCII" in one_line(sglang("run", "--url", server.url, "--api-key", "caf\u00e9", "Hi"))


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help", "all"], ["models"]])
def test_output_that_nobody_reads_is_no_error(words: list[str]) -> None:
    command = [sys.executable, "-m", "sglang.cli", *words]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


# --- run --------------------------------------------------------------------------------------------------------------------


def test_run_starts_a_model_and_leaves_nothing(tmp_path: Path) -> None:
    result = sglang(
        "run", "smollm2-135m-instruct", "What is the capital of France? Answer in one sentence.", "--temperature", "0"
    )
    assert result.returncode == 0 and "Paris" in result.stdout, result.stderr


def test_run_reads_standard_input_and_continues_texts(server: RunningServer) -> None:
    result = sglang("run", "--url", server.url, "--raw", "--max-tokens", "4", "--temperature", "0", "-", stdin="1, 2, 3, 4,")
    assert result.stdout.strip().startswith("5"), result


def test_run_with_a_bad_flag_or_model_is_one_line() -> None:
    assert "--threads" in one_line(sglang("run", "hello", "--", "--treads", "2"), 2)
    assert "--treads" in one_line(sglang("run", "hello", "--treads", "2"), 2)
    assert "no-such-model" in one_line(sglang("run", "./no-such-model", "hello"))


# --- bench ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["native", "completions", "chat"])
def test_bench_serve_counts_what_it_sent(server: RunningServer, tmp_path: Path, api: str) -> None:
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    shape = ["--num-requests", "6", "--input-len", "20", "--output-len", "5", "--shared-prefix-len", "40", "--concurrency", "3"]
    result = sglang(
        "bench", "serve", "--url", server.url, "--api", api, *shape, "--json", str(figures), "--chart", str(picture)
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads(figures.read_text())
    assert summary["completed"] == 6 and summary["failed"] == 0
    assert summary["output_tokens"] == 30
    if api != "chat":
        assert summary["input_tokens"] == 6 * 60 and summary["cached_tokens"] >= 5 * 39
    times = summary["milliseconds"]
    assert 0 < times["time_to_first_token"]["p50"] <= times["end-to-end_latency"]["p50"]
    assert times["time_to_first_token"]["p50"] <= times["time_to_first_token"]["p99"] <= times["time_to_first_token"]["max"]
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_bench_serve_paces_requests(server: RunningServer) -> None:
    flags = ["--num-requests", "8", "--input-len", "4", "--output-len", "1", "--request-rate", "8", "--json", "-"]
    summary = json.loads(sglang("bench", "serve", "--url", server.url, *flags).stdout)
    assert summary["seconds"] > 0.3, "a Poisson process of rate 8 with this seed takes longer for 8 requests"


def test_bench_offline() -> None:
    flags = ["--num-requests", "2", "--input-len", "8", "--output-len", "4", "--json", "-", "--", "--max-total-tokens", "512"]
    summary = json.loads(sglang("bench", "offline", *flags).stdout)
    assert summary["completed"] == 2 and summary["output_tokens"] == 8 and summary["input_tokens"] == 16


def test_bench_refuses_nonsense() -> None:
    assert "--spread" in one_line(sglang("bench", "serve", "--spread", "2"), 2)
