"""A scheduler that dies takes no request along: the next one goes on from the tokens already sent, to the same answer."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from sglang.srt.process.schedulers import MAX_RESTARTS
from tests.conftest import ROOT, RunningServer, start_server
from tests.server.test_operate import eventually, post, state
from tests.server.test_processes import wait_dead

TIMED = {
    *("e2e_latency", "id", "cached_tokens", "ttft", "queue_time"),
    *("spec_verify_ct", "spec_draft_token_num", "spec_accept_token_num"),
}
"""what differs from run to run in `meta_info`"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 80}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
LIST = {"type": "array", "items": {"type": "integer"}, "minItems": 40, "maxItems": 60}
STORY = "Once upon a time there was"

pytestmark = pytest.mark.attack


def journal_of(pid: int) -> Path:
    return Path(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3].decode()) / "grammars"


def kill_scheduler(server: RunningServer, number: int = signal.SIGKILL) -> None:
    pid = server.scheduler()
    os.kill(pid, number)
    wait_dead([pid])


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = start_server(tmp_path_factory.mktemp("frail") / "log", "--random-seed", "1", "--drain-seconds", "1")
    yield server
    server.process.kill()
    server.process.wait()


# --- requests and what is heard of them -----------------------------------------------------------------------------------


class Heard:
    """One streamed request: its events, as they come."""

    def __init__(self, url: str, path: str, body: dict[str, Any]) -> None:
        self.url, self.path, self.body = url, path, body
        self.events: list[dict[str, Any]] = []
        self.status = 0

    def run(self) -> Heard:
        with httpx.stream("POST", self.url + self.path, json=self.body, timeout=120, trust_env=False) as reply:
            self.status = reply.status_code
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line[6:]))
        return self

    def answer(self) -> Any:
        """What must not depend on the weather."""
        assert self.status == 200 and not any("error" in e for e in self.events), (self.body, self.events[-1:])
        return native_answer(self.events) if self.path == "/generate" else openai_answer(self.events)


def native_answer(events: list[dict[str, Any]]) -> Any:
    """The last event of each sample: streams of /generate say all so far."""
    last = {event.get("index", 0): event for event in events}
    return [
        (e["text"], e.get("output_ids"), {k: v for k, v in e["meta_info"].items() if k not in TIMED})
        for _, e in sorted(last.items())
    ]


def openai_answer(events: list[dict[str, Any]]) -> Any:
    joined: dict[str, Any] = {}
    for event in events:
        for choice in event.get("choices", []):
            delta = choice.get("delta") or {"content": choice.get("text")}
            at = f"{choice['index']}"
            joined[at] = joined.get(at, "") + (delta.get("content") or "")
            for call in delta.get("tool_calls") or []:
                function = call["function"]
                joined[at] += f"{function.get('name') or ''}{function.get('arguments') or ''}"
            joined[f"{at} logprobs"] = joined.get(f"{at} logprobs", []) + _tokens(choice.get("logprobs"))
            joined[f"{at} finish"] = choice.get("finish_reason") or joined.get(f"{at} finish")
        if event.get("usage"):
            joined["usage"] = {k: event["usage"][k] for k in ("prompt_tokens", "completion_tokens")}
    return joined


def _tokens(logprobs: dict[str, Any] | None) -> list[Any]:
    if not logprobs:
        return []
    return (
        list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)) if "tokens" in logprobs else logprobs["content"]
    )


def native(sampling: dict[str, Any], **fields: Any) -> tuple[str, dict[str, Any]]:
    sampling = {"max_new_tokens": 90, "temperature": 0, **sampling}
    return "/generate", {"text": STORY, "stream": True, "sampling_params": sampling, **fields}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": "Tell a long story about the weather in Paris."}]
    body = {"model": "m", "messages": messages, "stream": True, "max_tokens": 90, "stream_options": {"include_usage": True}}
    return "/v1/chat/completions", {**body, "temperature": 0, **fields}


def kinds(url: str) -> list[tuple[str, dict[str, Any]]]:
    text = post(url, native({"ignore_eos": True}, stream=False)[1]).json()["text"]
    return [
        native({"ignore_eos": True}),
        native({"temperature": 0.9, "seed": 5, "ignore_eos": True}),
        native({"stop": [text[200:215]]}),
        native({"stop": [text[150:154], "never"], "no_stop_trim": True, "min_new_tokens": 60}),
        native({"stop_regex": "z[a-z]+x|q[0-9]{3}", "ignore_eos": True}),
        native({"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3, "temperature": 1.2, "seed": 8}),
        native({"regex": "[a-z ,]{150,300}", "temperature": 0.8, "seed": 3}),
        native({"json_schema": json.dumps(LIST), "max_new_tokens": 200}),
        native({"ignore_eos": True}, return_logprob=True, logprob_start_len=0, top_logprobs_num=3),
        native({"temperature": 1.0, "seed": 11, "n": 2, "ignore_eos": True}),
        native({"ignore_eos": True, "max_new_tokens": 60}, text=[STORY, "The capital of France"]),
        chat(),
        chat(temperature=0.7, seed=2, logprobs=True, top_logprobs=2),
        chat(tools=[WEATHER], tool_choice="required", temperature=1.0, seed=1),
        ("/v1/completions", {"model": "m", "prompt": STORY, "stream": True, "max_tokens": 80, "temperature": 0, "logprobs": 2}),
    ]


def hear_all(url: str, requests: list[tuple[str, dict[str, Any]]], meanwhile: Callable[[list[Heard]], None]) -> list[Heard]:
    heard = [Heard(url, path, body) for path, body in requests]
    with ThreadPoolExecutor(len(heard)) as pool:
        futures = [pool.submit(one.run) for one in heard]
        meanwhile(heard)
        return [future.result() for future in futures]


def hear_all_over_a_death(
    server: RunningServer, requests: list[tuple[str, dict[str, Any]]], num_events: int
) -> tuple[list[Heard], list[int]]:
    """As `hear_all`; once each has `num_events`, the scheduler dies. Also how many events each had then."""
    cut: list[int] = []

    def die(heard: list[Heard]) -> None:
        eventually(lambda: all(len(one.events) >= num_events for one in heard))
        kill_scheduler(server)
        cut.extend(len(one.events) for one in heard)

    return hear_all(server.url, requests, die), cut


def test_every_kind_of_stream_is_continued_to_the_same_answer(frail: RunningServer) -> None:
    requests = kinds(frail.url)
    expected = [one.answer() for one in hear_all(frail.url, requests, lambda heard: None)]
    again, cut = hear_all_over_a_death(frail, requests, 3)
    assert sum(len(one.events) > before for one, before in zip(again, cut, strict=True)) > len(again) / 2, (
        "it died in mid-stream"
    )
    for one, answer in zip(again, expected, strict=True):
        assert one.answer() == answer, one.body


def test_two_deaths_and_what_is_not_streamed(frail: RunningServer) -> None:
    requests = [(path, body | {"stream": False}) for path, body in kinds(frail.url) if path == "/generate"]
    requests += [native({"max_new_tokens": 200, "ignore_eos": True, "temperature": 1.0, "seed": 9}, stream=False)]
    expected = [answer_of(post(frail.url, body)) for _, body in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(post, frail.url, body) for _, body in requests]
        eventually(lambda: state(frail.url)["num_running"] >= 3)
        kill_scheduler(frail)
        eventually(lambda: len(frail.children()) > 0 and status(frail) == "ready")
        os.kill(frail.scheduler(), signal.SIGKILL)  # while it computes the prompts
        assert [answer_of(future.result()) for future in futures] == expected


def answer_of(reply: httpx.Response) -> Any:
    assert reply.status_code == 200, reply.text
    body = reply.json()
    samples = body if isinstance(body, list) else [body]
    return [(s["text"], {k: v for k, v in s["meta_info"].items() if k not in TIMED}) for s in samples]


def status(server: RunningServer) -> str:
    return str(httpx.get(f"{server.url}/health", timeout=20, trust_env=False).json()["status"])


# --- what happens meanwhile -----------------------------------------------------------------------------------------------


@pytest.fixture()
def away(tmp_path: Path) -> Iterator[tuple[RunningServer, Heard, ThreadPoolExecutor]]:
    """A server whose scheduler has just died, with a stream in flight."""
    server = start_server(tmp_path / "log", "--drain-seconds", "60", "--enable-metrics")
    with ThreadPoolExecutor(8) as pool:
        path, body = native({"ignore_eos": True, "max_new_tokens": 200}, rid="first")
        stream = Heard(server.url, path, body)
        pool.submit(stream.run)
        eventually(lambda: len(stream.events) >= 3)
        kill_scheduler(server)
        eventually(lambda: status(server) == "broken")
        yield server, stream, pool
    server.process.kill()
    server.process.wait()


def test_requests_aborts_deadlines_and_calls_while_there_is_no_scheduler(
    away: tuple[RunningServer, Heard, ThreadPoolExecutor],
) -> None:
    server, stream, pool = away
    url = server.url
    new = pool.submit(post, url, native({"max_new_tokens": 4}, stream=False)[1])
    late = pool.submit(
        post, url, native({"max_new_tokens": 4000, "ignore_eos": True}, stream=False)[1], **{"X-Request-Timeout": "0.4"}
    )
    flush = httpx.post(f"{url}/flush_cache", timeout=60, trust_env=False)
    assert flush.status_code in (200, 503) and "Traceback" not in flush.text
    post(url, {"rid": "first"}, "/abort_request")
    eventually(lambda: bool(stream.events) and stream.events[-1]["meta_info"]["finish_reason"] is not None)
    assert stream.events[-1]["meta_info"]["finish_reason"]["type"] == "abort"
    assert new.result().status_code == 200 or "retry-after" in new.result().headers, "it waits for the next scheduler"
    assert late.result().status_code == 504
    eventually(lambda: state(url)["num_inflight"] == 0 and state(url)["num_running"] == 0)
    page = httpx.get(f"{url}/metrics", trust_env=False).text
    assert 'sglang:num_scheduler_restarts_total{model_name="smollm2-135m-instruct"} 1.0' in page


def test_draining_while_a_scheduler_is_restarted_finishes_what_was_there(
    away: tuple[RunningServer, Heard, ThreadPoolExecutor],
) -> None:
    server, stream, _ = away
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    last = stream.events[-1]["meta_info"]
    assert last["finish_reason"] == {"type": "length", "length": 200} and last["completion_tokens"] == 200


def test_a_scheduler_that_dies_again_and_again_ends_the_server_with_clear_errors(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log")
    body = native({"ignore_eos": True, "max_new_tokens": 4000}, stream=False)[1]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, server.url, body)
        eventually(lambda: state(server.url)["num_running"] == 1)
        deadline = time.monotonic() + 120
        while server.process.poll() is None and time.monotonic() < deadline:
            for pid in server.children():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        server.process.kill()  # if it has not ended
        assert server.process.wait(30) == 1
        reply = future.result(timeout=30)
    assert reply.status_code == 500 and "died" in reply.json()["error"]["message"]
    assert f"died {MAX_RESTARTS + 1} times" in server.log.read_text()


# --- pictures and vectors -------------------------------------------------------------------------------------------------


def test_requests_with_pictures_are_sent_their_pixels_again(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log", model=str(ROOT / "models" / "toy-vlm"))
    try:
        pictures = [Image.radial_gradient("L").convert("RGB").rotate(40 * i).resize((64 + 16 * i, 80)) for i in range(3)]
        sampling = {"max_new_tokens": 220, "ignore_eos": True, "temperature": 0.9, "seed": 3, "n": 2}
        text = "<|vision_start|><|image_pad|><|vision_end|>What is this?"
        requests = [
            native(sampling, text=text, image_data=uri(picture), return_logprob=True, cache_salt=str(i))
            for i, picture in enumerate(pictures)
        ]
        expected = [one.answer() for one in hear_all(server.url, requests, lambda heard: None)]
        again, cut = hear_all_over_a_death(server, requests, 2)
        assert any(len(one.events) > before for one, before in zip(again, cut, strict=True)), "it died in mid-stream"
        assert [one.answer() for one in again] == expected
    finally:
        server.process.kill()
        server.process.wait()


def uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def test_texts_to_embed_are_sent_again(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log", "--is-embedding")
    try:
        texts = [f"text number {i} " + "and so on " * 30 for i in range(24)]
        expected = post(server.url, {"model": "m", "input": texts}, "/v1/embeddings").json()["data"]
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(post, server.url, {"model": "m", "input": texts}, "/v1/embeddings")
            eventually(lambda: state(server.url)["num_inflight"] > 0)
            kill_scheduler(server)
            reply = future.result()
        assert reply.status_code == 200 and reply.json()["data"] == expected
    finally:
        server.process.kill()
        server.process.wait()


# --- deadly requests ------------------------------------------------------------------------------------------------------

DEADLY_TOKEN, FAILING_TOKEN = 4242, 4343
POISON = f"""
import os, signal, sys, time

if "sglang.srt.process.scheduler_process" in getattr(sys, "orig_argv", ()):
    from sglang.srt.model.worker import LocalWorker
    from sglang.srt.scheduler.grammar.engines import llguidance_backend as engine

    class DeadlyState(engine.LLGuidanceState):
        hangs = False
        count = 0

        def accept(self, token_id):
            self.count += 1
            if self.count == 6:
                time.sleep(1000) if self.hangs else os.kill(os.getpid(), signal.SIGSEGV)
            return super().accept(token_id)

        def copy(self):
            made = type(self)(self._matcher.deep_copy(), self._num_words)
            made.hangs, made.count = self.hangs, self.count
            return made

    def compile(self, kind, text, prefix="", plain=engine.LLGuidanceBackend.compile):
        if "deadly to compile" in text:
            os.abort()
        state = plain(self, kind, text, prefix)
        if "deadly" in text:
            state = DeadlyState(state.matcher, state._num_words)
            state.hangs = "hangs" in text
        return state

    def forward(self, batch, plain=LocalWorker.forward):
        if {DEADLY_TOKEN} in batch.input_ids:
            os.kill(os.getpid(), signal.SIGSEGV)
        if {FAILING_TOKEN} in batch.input_ids:
            raise RuntimeError("a bug")
        plain(self, batch)

    engine.LLGuidanceBackend.compile = compile
    LocalWorker.forward = forward
"""
"""sitecustomize.py of a scheduler whose native code crashes on some input: states of grammars and the forward pass do what a bug
in them would do"""


@pytest.fixture(params=["grammars", "crashes", "errors"], scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "sitecustomize.py").write_text(POISON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        hang = ["--watchdog-timeout", "15"] if request.param == "grammars" else []
        server = start_server(folder / "log", "--enable-metrics", *hang)
    yield server
    server.process.kill()
    server.process.wait()


INNOCENT = [
    native({"ignore_eos": True, "max_new_tokens": 150}),
    native({"temperature": 0.9, "seed": 5, "ignore_eos": True, "max_new_tokens": 150}),
    native({"regex": "[a-z ,]{300,600}", "max_new_tokens": 150}),
]


def among_the_innocent(server: RunningServer, body: dict[str, Any]) -> httpx.Response:
    """The answer to `body`, after a check that others in flight get the answers that they get without it."""
    expected = [one.answer() for one in hear_all(server.url, INNOCENT, lambda heard: None)]
    replies: list[httpx.Response] = []

    def strike(heard: list[Heard]) -> None:
        eventually(lambda: all(len(one.events) >= 3 for one in heard))
        replies.append(post(server.url, body))

    again = hear_all(server.url, INNOCENT, strike)
    assert [one.answer() for one in again] == expected
    return replies[0]


def num_restarts(server: RunningServer) -> float:
    page = httpx.get(f"{server.url}/metrics", trust_env=False).text
    return float(next(line for line in page.splitlines() if line.startswith("sglang:num_scheduler_restarts_total")).split()[-1])


@pytest.mark.parametrize("poisoned", ["grammars"], indirect=True)
@pytest.mark.parametrize("pattern", ["deadly[a-z]{30}", "deadly to compile[a-z]", "deadly and hangs[a-z]{30}"])
def test_a_grammar_that_kills_the_scheduler_is_refused_from_then_on(poisoned: RunningServer, pattern: str) -> None:
    before = num_restarts(poisoned)
    body = native({"regex": pattern, "max_new_tokens": 40, "temperature": 1.0, "seed": 4}, stream=False)[1]
    reply = among_the_innocent(poisoned, body)
    assert reply.status_code == 400 and "refused from now on" in reply.json()["error"]["message"], reply.text
    again = post(poisoned.url, body)
    assert again.status_code == 400 and num_restarts(poisoned) == before + 1, "it kills once"
    assert post(poisoned.url, native({"regex": "[a-z]{3}"}, stream=False)[1]).status_code == 200


@pytest.mark.parametrize(
    ("poisoned", "token"),
    [("crashes", DEADLY_TOKEN), pytest.param("errors", FAILING_TOKEN, marks=pytest.mark.slow)],
    indirect=["poisoned"],
)
def test_a_deadly_request_ends_and_the_others_do_not(poisoned: RunningServer, token: int) -> None:
    body: dict[str, Any] = {"input_ids": [5, 6, token, 7], "sampling_params": {"max_new_tokens": 5}}
    reply = among_the_innocent(poisoned, body)
    assert reply.status_code == 500 and "not tried again" in reply.json()["error"]["message"]
    assert num_restarts(poisoned) < MAX_RESTARTS
    eventually(lambda: status(poisoned) == "ready")
    assert state(poisoned.url)["num_inflight"] == 0
    if token == FAILING_TOKEN:
        log = poisoned.log.read_text()
        assert "RuntimeError: a bug" in log and "Fatal Python error" not in log, "it ends in order"
