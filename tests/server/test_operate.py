"""Guarantees for operators: a server reports its state, ends requests in time, survives hangs and floods, and drains."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from sglang.srt.server.http.starting import OuterApp
from tests.conftest import ROOT, RunningServer, free_port, spawn_server, start_server
from tests.server.test_processes import wait_dead

LONG = {"text": "A story:", "sampling_params": {"max_new_tokens": 8000, "ignore_eos": True}}
SHORT = {"text": "Hi", "sampling_params": {"max_new_tokens": 2}}


def post(url: str, body: dict[str, Any], path: str = "/generate", **headers: str) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=60, headers=headers, trust_env=False)


def eventually(check: Callable[[], bool], seconds: float = 60.0, what: str = "it did not happen") -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def state(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{url}/get_server_info", timeout=30, trust_env=False).json()["internal_states"][0]
    return answer


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One request at a time, three may wait, none longer than 30 s; a silence of 3 s is a hang."""
    flags = ["--max-running-requests", "1", "--max-queued-requests", "3", "--request-timeout", "30", "--watchdog-timeout", "3"]
    logs = ["--enable-metrics", "--log-requests", "--log-requests-level", "2"]
    server = start_server(tmp_path_factory.mktemp("tight") / "log", *flags, *logs)
    yield server
    server.process.kill()
    server.process.wait()


# --- overload and deadlines -------------------------------------------------------------------------------------------------


def test_a_full_queue_is_a_503_that_says_when_to_come_back(tight: RunningServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        body = LONG | {"rid": "first"}
        futures = [pool.submit(post, tight.url, body)]
        eventually(lambda: state(tight.url)["num_running"] == 1)
        futures += [pool.submit(post, tight.url, LONG) for _ in range(3)]
        eventually(lambda: state(tight.url)["num_waiting"] == 3)
        for path, extra in (("/generate", LONG), ("/generate", LONG | {"stream": True})):
            reply = post(tight.url, extra, path)
            assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
            assert "waiting already" in reply.json()["error"]["message"]
        chat = {"messages": [{"role": "user", "content": "Hi"}]}
        assert post(tight.url, chat, "/v1/chat/completions").json()["error"]["type"] == "ServiceUnavailableError"
        post(tight.url, {"abort_all": True}, "/abort_request")
        assert all(f.result().json()["meta_info"]["finish_reason"]["type"] == "abort" for f in futures)
    assert post(tight.url, SHORT).status_code == 200


def test_a_request_may_bring_its_own_deadline(tight: RunningServer) -> None:
    began = time.monotonic()
    reply = post(tight.url, LONG, **{"X-Request-Timeout": "0.5"})
    assert reply.status_code == 504 and "0.5 s" in reply.json()["error"]["message"]
    assert time.monotonic() - began < 20
    eventually(lambda: state(tight.url)["num_running"] == 0, what="it runs on after its deadline")
    streamed = post(tight.url, LONG | {"stream": True}, **{"X-Request-Timeout": "0.7"}).text
    assert streamed.count("data: ") > 2 and "0.7 s" in streamed and streamed.rstrip().endswith("[DONE]")
    assert post(tight.url, SHORT, **{"X-Request-Timeout": "soon"}).status_code == 400
    assert post(tight.url, SHORT, **{"X-Request-Timeout": "-1"}).status_code == 400


def test_the_log_has_one_json_object_for_each_event(tight: RunningServer) -> None:
    rid = 'a"b\n[2020-01-01 00:00:00] forged'
    post(tight.url, SHORT | {"rid": rid})
    lines = tight.log.read_text().splitlines()
    entries = [json.loads(line.split("] ", 1)[1]) for line in lines if '{"event":' in line]
    mine = [e for e in entries if e["rid"] == rid]
    assert [e["event"] for e in mine] == ["received", "finished"]
    assert mine[0]["sampling"]["max_new_tokens"] == 2 and mine[1]["completion_tokens"] == 2
    assert mine[1]["seconds"] >= mine[1]["first_token_seconds"] >= mine[1]["queue_seconds"] >= 0
    assert not any(line.startswith("[2020-01-01") for line in lines)
    assert any(e["event"] == "dropped" and "0.5 s" in e["message"] for e in entries)


# --- hangs and deaths -------------------------------------------------------------------------------------------------------


def test_a_scheduler_that_hangs_is_replaced(tight: RunningServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        future = pool.submit(post, tight.url, LONG)
        eventually(lambda: state(tight.url)["num_running"] == 1)
        (old,) = tight.children()
        os.kill(old, signal.SIGSTOP)
        reply = future.result(timeout=60)
    assert reply.status_code == 504, "another one took it up, until its deadline"
    eventually(lambda: httpx.get(f"{tight.url}/health", trust_env=False).status_code == 200)
    assert tight.children() != [old]
    assert post(tight.url, SHORT).status_code == 200
    assert "has sent nothing for" in tight.log.read_text()


def test_while_the_scheduler_is_away_health_says_broken(tight: RunningServer) -> None:
    (old,) = tight.children()
    os.kill(old, signal.SIGKILL)
    seen: list[tuple[int, str]] = []  # ready, until the death is noticed; broken; ready
    deadline = time.monotonic() + 60
    while (503, "broken") not in seen or seen[-1] != (200, "ready"):
        reply = httpx.get(f"{tight.url}/health", trust_env=False)
        seen.append((reply.status_code, reply.json()["status"]))
        assert time.monotonic() < deadline
    assert post(tight.url, SHORT).status_code == 200
    assert set(seen) == {(200, "ready"), (503, "broken")}


def socket_folders(server: RunningServer) -> list[Path]:
    """The directories that a live server's schedulers were given."""
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in server.children()]
    return [Path(words[3].decode()) for words in commands]


def test_killing_the_server_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log")
    pids, folders = server.children(), socket_folders(server)
    assert folders and all((f.stat().st_mode & 0o777) == 0o700 for f in folders)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, server.url, LONG)
        eventually(lambda: state(server.url)["num_running"] == 1)
        server.process.kill()
        with pytest.raises(httpx.TransportError):
            future.result(timeout=20)
    server.process.wait()
    wait_dead(pids)
    assert not any(f.exists() for f in folders)


def health(server: RunningServer) -> tuple[int, str] | None:
    try:
        reply = httpx.get(f"{server.url}/health", timeout=20, trust_env=False)
    except httpx.TransportError:
        return None
    return reply.status_code, reply.json()["status"]


async def test_a_browser_is_shown_that_the_model_loads() -> None:
    """A page that asks again until the real one is there; programs are told in JSON, by the same address."""
    transport = httpx.ASGITransport(OuterApp())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("/", "/behind/a/proxy/"):
            reply = await client.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
            assert reply.status_code == 503 and reply.headers["content-type"].startswith("text/html")
            assert 'http-equiv="refresh"' in reply.text and "being loaded" in reply.text
        for path, accept in (("/", "*/*"), ("/v1/models", "text/html"), ("/health", "text/html")):
            reply = await client.get(path, headers={"Accept": accept})
            assert reply.status_code == 503 and reply.json()


def test_a_server_that_loads_says_so_and_ends_when_its_starter_does(tmp_path: Path) -> None:
    server = spawn_server(tmp_path / "log", "--stop-with-stdin", stdin=subprocess.PIPE)
    seen = []
    eventually(lambda: (seen.append(health(server)), seen[-1] == (200, "ready"))[1])
    assert (503, "starting") in seen and seen[-1] == (200, "ready")
    pids = [server.process.pid, *server.children()]
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(20) == 0
    wait_dead(pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_loading_leaves_nothing(tmp_path: Path, number: int) -> None:
    server = spawn_server(tmp_path / "log", stdin=subprocess.PIPE)
    eventually(lambda: health(server) is not None and bool(server.children()))
    pids = server.children()
    server.process.send_signal(number)
    assert server.process.wait(20) != 0
    wait_dead(pids)
    assert "Traceback" not in server.log.read_text()


# --- the end ----------------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import asyncio, os, signal, sys
from sglang.commands.serve import serve
from sglang.srt.process import launch
async def first_request(*_):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10):
        await asyncio.sleep(0)
launch.first_request = first_request
sys.exit(serve(sys.argv[1:]))
"""


def test_one_that_is_stopped_during_its_first_request_does_not_call_itself_ready() -> None:
    command = [sys.executable, "-c", INTERRUPTED, "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Shutting down" in done.stderr
    assert "ready" not in done.stdout + done.stderr


def test_draining_finishes_what_runs_and_takes_no_more(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log", "--drain-seconds", "60")
    body = {"text": "A story:", "sampling_params": {"max_new_tokens": 200, "ignore_eos": True}}
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, server.url, body)
        eventually(lambda: state(server.url)["num_running"] == 1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: health(server) == (503, "draining"))
        refused = post(server.url, SHORT)
        assert refused.status_code == 503 and "shutting down" in refused.text and "retry-after" in refused.headers
        reply = future.result(timeout=60)
    assert reply.status_code == 200 and reply.json()["meta_info"]["completion_tokens"] == 200
    assert server.process.wait(20) == 0


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log", "--drain-seconds", "600")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, server.url, LONG)
        eventually(lambda: state(server.url)["num_running"] == 1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: health(server) == (503, "draining"))
        pids = server.children()
        assert server.stop(signal.SIGTERM, 20) == 0
        try:
            assert future.result(timeout=20).status_code == 503
        except httpx.TransportError:
            pass
    wait_dead(pids)


# --- metrics and traces -----------------------------------------------------------------------------------------------------

NAMES = re.findall(
    r"\w+",
    """
    prompt_tokens_total generation_tokens_total cached_tokens_total num_requests_total num_so_requests_total
    num_aborted_requests_total time_to_first_token_seconds inter_token_latency_seconds e2e_request_latency_seconds
    num_running_reqs num_queue_reqs num_grammar_queue_reqs num_used_tokens token_usage gen_throughput cache_hit_rate
    total_retracted_reqs avg_request_queue_latency prompt_tokens_histogram generation_tokens_histogram queue_time_seconds
    per_stage_req_latency_seconds num_retractions_total num_scheduler_restarts_total num_resumed_requests_total
""",
)


def families(page: str) -> set[str]:
    """Every name under which a sample is found, and every histogram's own."""
    samples = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if line and not line.startswith("#")}
    return samples | {s.removesuffix("_bucket") for s in samples}


def test_metrics_have_the_names_that_dashboards_know(tight: RunningServer) -> None:
    for _ in range(2):
        post(tight.url, {"text": "1 2 3", "sampling_params": {"max_new_tokens": 6, "regex": "[0-9 ]+", "ignore_eos": True}})
    page = httpx.get(f"{tight.url}/metrics", trust_env=False).text
    assert {f"sglang:{name}" for name in NAMES} <= families(page)
    values = {m[1]: float(m[2]) for m in re.finditer(r"^sglang:(\w+)\{[^}]*\} ([\d.e+-]+)$", page, re.M)}
    assert values["num_so_requests_total"] >= 2 and values["cached_tokens_total"] > 0
    assert values["time_to_first_token_seconds_count"] >= 2 and values["inter_token_latency_seconds_count"] >= 2
    for stage in ("queue", "prefill", "decode"):
        assert f'stage="{stage}"' in page


def test_a_prompt_that_comes_again_is_drafted_from_the_prefix_tree_and_says_so(tight: RunningServer) -> None:
    body = {"text": "7 8 9 10 11 12", "sampling_params": {"max_new_tokens": 24, "temperature": 0, "ignore_eos": True}}

    def counts() -> dict[str, float]:
        page = httpx.get(f"{tight.url}/metrics", trust_env=False).text
        found = re.finditer(r'^sglang:spec_(\w+)_total\{[^}]*proposer="radix_tree"\} ([\d.e+-]+)$', page, re.M)
        return {m[1]: float(m[2]) for m in found}

    first, before = post(tight.url, body).json(), counts()
    second, after = post(tight.url, body).json(), counts()
    assert second["text"] == first["text"]
    meta = second["meta_info"]
    assert 0 < meta["spec_verify_ct"] < meta["spec_accept_token_num"] <= meta["spec_draft_token_num"]
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert (
        grown["accepted_tokens"] == meta["spec_accept_token_num"] and grown["proposed_tokens"] == meta["spec_draft_token_num"]
    )
    assert grown["rows"] == grown["proposed_tokens"]


def test_dashboard_and_alerts_ask_for_nothing_that_is_not_there(tight: RunningServer) -> None:
    dashboard = json.loads((ROOT / "docs/grafana/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += re.findall(r"expr: (.*)", (ROOT / "deploy/alerts.yml").read_text())
    asked = {name for query in queries for name in re.findall(r"sglang:(?!gateway_)\w+", query)}  # a gateway has its own
    there = families(httpx.get(f"{tight.url}/metrics", trust_env=False).text)
    assert asked and asked <= there, asked - there
    assert {f"sglang:{name}" for name in NAMES} - {re.sub("_(bucket|sum|count)$", "", a) for a in asked} == set()


def test_traces_reach_a_collector(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    server = start_server(tmp_path / "log", "--otlp-traces-endpoint", endpoint)
    trace = "0af7651916cd43dd8448eb211c80319c"
    post(server.url, SHORT | {"rid": "traced"}, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    server.stop()
    collector.shutdown()
    spans = []
    for data in received:
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    mine = [span for span in spans if span.trace_id.hex() == trace]
    assert {span.name for span in mine} == {"generate", "queue", "prefill", "decode"}
    whole = next(span for span in mine if span.name == "generate")
    facts = {a.key: a.value for a in whole.attributes}
    assert facts["gen_ai.usage.output_tokens"].int_value == 2 and whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert all(whole.start_time_unix_nano <= s.start_time_unix_nano <= s.end_time_unix_nano for s in mine)


# --- memory -----------------------------------------------------------------------------------------------------------------


def resident_mb(pids: list[int]) -> float:
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_ten_thousand_waiting_requests_take_little_memory(tmp_path: Path) -> None:
    server = start_server(tmp_path / "log", "--max-running-requests", "1", "--max-queued-requests", "10000")
    try:
        pids = [server.process.pid, *server.children()]
        body = {"input_ids": [[5] * 64] * 2500, "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}
        post(server.url, SHORT)
        before = resident_mb(pids)
        with ThreadPoolExecutor(5) as pool:
            futures = [pool.submit(post, server.url, body) for _ in range(4)]
            eventually(lambda: state(server.url)["num_waiting"] >= 9999)
            grown = resident_mb(pids) - before
            assert post(server.url, body | {"input_ids": [[5] * 64] * 4}).status_code == 503
            began = time.monotonic()
            post(server.url, {"abort_all": True}, "/abort_request")
            for future in futures:
                future.result()
        assert grown < 150, f"{grown:.0f} MB for 10,000 requests"
        assert time.monotonic() - began < 20
        eventually(lambda: state(server.url)["num_inflight"] == 0)
    finally:
        server.stop()
