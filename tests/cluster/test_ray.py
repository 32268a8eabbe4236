"""Replicas on Ray: the replies of one server, also when a replica dies in the middle of one. One cluster for all of these tests; they need
`ray[serve]` and run in an environment of their own (make test-cluster)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sglang.commands.top import look
from sglang.common.server_process import end_process
from tests.cluster.conftest import CHAT, SEED, start_several
from tests.cluster.test_replicas import STREAMS, said
from tests.cluster.test_several import CALLS, seen, wait_for
from tests.conftest import RunningServer
from tests.server.test_processes import wait_dead

CACHED = re.compile(r'"(cached_tokens|cache_read_input_tokens|input_tokens|spec_[a-z_]+)":\s*[0-9]+')
"""of a prompt of some tokens, which goes to another replica while the first one still seems to have work"""

pytest.importorskip("ray", reason="run by make test-cluster")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def on_ray(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("ray")
    temporary = Path(f"/tmp/sgl-{os.getpid()}")  # Ray's sockets need short paths
    temporary.mkdir()
    flags = ("--model-path", str(models["alpha"]), "--served-model-name", "alpha", "--ray", "auto", "--replicas", "2")
    environ = {"TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary), "RAY_USAGE_STATS_ENABLED": "0"}
    server = start_several(
        folder / "log",
        *(*flags, "--replica-cpus", "0.5", "--replica-wait", "600", "--enable-metrics", *SEED),
        environ=environ,
        seconds=400,
    )
    pids = processes_of(temporary)
    assert len(servers_of(temporary)) == 2
    server.folder = temporary  # type: ignore[attr-defined]
    yield server
    server.process.send_signal(signal.SIGINT)
    server.process.wait(120)
    wait_dead(pids)
    assert not processes_of(temporary), "Ctrl-C ends everything"


def processes_of(folder: Path) -> list[int]:
    """All that were started with this folder for temporary files."""
    mark = f"TMPDIR={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def servers_of(folder: Path) -> list[int]:
    """The servers of the replicas."""

    def is_one(pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"sglang.launch_server" in words and b"--config" in words

    return [pid for pid in processes_of(folder) if is_one(pid)]


def folder_of(server: RunningServer) -> Path:
    folder: Path = server.folder  # type: ignore[attr-defined]
    return folder


def wait_for_replicas(server: RunningServer, count: int = 2) -> None:
    """Until so many answer."""

    def replies() -> bool:
        text = httpx.get(f"{server.url}/metrics", timeout=60, trust_env=False).text
        families = {f.name: f for f in text_string_to_metric_families(text)}
        return "sglang:num_running_reqs" in families and len(families["sglang:num_running_reqs"].samples) >= count

    wait_for(lambda: len(servers_of(folder_of(server))) == count and replies(), 300)


@pytest.mark.parametrize("call", [name for name in CALLS if name != "an unknown path"])
def test_replies_are_those_of_one_server(on_ray: RunningServer, alone: RunningServer, call: str) -> None:
    path, body = CALLS[call]
    found = []
    for server in (alone, on_ray):
        with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as client:
            assert client.post("/flush_cache").status_code == 200
            cold, warm = seen(client.post(path, json=body)), seen(client.post(path, json=body))
            pieces = "" if body.get("stream") else CACHED.sub("", warm[2])  # drafts from the cache make longer pieces
            found.append((cold, (*warm[:2], pieces)))
    assert found[0] == found[1]


def test_a_prompt_that_comes_again_goes_where_it_was(on_ray: RunningServer) -> None:
    body: dict[str, Any] = {"text": "x y z " * 200, "sampling_params": {"max_new_tokens": 5, "temperature": 0}}
    with httpx.Client(base_url=on_ray.url, timeout=120, trust_env=False) as client:
        assert client.post("/flush_cache").status_code == 200
        cached = [client.post("/generate", json=body).json()["meta_info"]["cached_tokens"] for _ in range(4)]
    assert cached[0] == 0 and min(cached[1:]) > 300


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_goes_on_when_its_replica_dies(on_ray: RunningServer, alone: RunningServer, name: str) -> None:
    path, body = STREAMS[name]
    expected = said(alone.url, path, body)
    wait_for_replicas(on_ray)
    killed: list[int] = []

    def kill(count: int) -> None:
        """Whichever has it: a replica that has another request now may be killed as well."""
        if count == 3:
            pids = servers_of(folder_of(on_ray))
            busy = max(pids, key=cpu_of)
            os.kill(busy, signal.SIGKILL)
            killed.append(busy)

    assert said(on_ray.url, path, body, kill) == expected
    assert killed
    wait_dead(killed)


def cpu_of(pid: int) -> int:
    """Ticks of a process and its children: of its scheduler, too."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(path.parent.name) == pid or int(fields[1]) == pid:
            total += int(fields[11]) + int(fields[12])
    return total


def test_all_replicas_dead_then_back(on_ray: RunningServer, alone: RunningServer) -> None:
    """A long answer that drafts do not shorten: its replica is killed in the middle of it."""
    params = {"max_new_tokens": 3900, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    body: dict[str, Any] = {"text": "a b", "sampling_params": params}
    expected = said(alone.url, "/generate", body)
    wait_for_replicas(on_ray)
    before = resumed(on_ray)
    killed: list[int] = []

    def kill(count: int) -> None:
        if count == 20:
            for pid in servers_of(folder_of(on_ray)):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    assert said(on_ray.url, "/generate", body, kill) == expected
    wait_dead(killed)
    assert len(killed) == 2 and resumed(on_ray) > before


def resumed(server: RunningServer) -> float:
    """Streams that went on with another replica."""
    text = httpx.get(f"{server.url}/metrics", timeout=60, trust_env=False).text
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    return sum(s.value for s in samples if s.name == "sglang:gateway_resumed_total")


def test_many_at_once_are_all_answered(on_ray: RunningServer, alone: RunningServer) -> None:
    wait_for_replicas(on_ray)
    replies: dict[tuple[str, int], str] = {}

    def ask(server: RunningServer, i: int) -> None:
        messages = [{"role": "user", "content": f"{i % 4} " + "x y z " * 60 + str(i)}]
        body = CHAT | {"messages": messages, "temperature": 0}
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
        replies[server.url, i] = reply.json()["choices"][0]["message"]["content"]

    for server in (on_ray, alone):
        threads = [threading.Thread(target=ask, args=(server, i)) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert all(replies[on_ray.url, i] == replies[alone.url, i] for i in range(24))
    text = httpx.get(f"{on_ray.url}/metrics", timeout=60, trust_env=False).text
    totals = [s.value for f in text_string_to_metric_families(text) for s in f.samples if s.name == "sglang:num_requests_total"]
    assert len(totals) == 2 and sum(totals) >= 24, "of both replicas"


def test_a_replica_takes_nothing_but_from_its_gateway(on_ray: RunningServer) -> None:
    import psutil

    wait_for_replicas(on_ray)
    for pid in servers_of(folder_of(on_ray)):
        listening = [c for c in psutil.Process(pid).net_connections("tcp") if c.status == "LISTEN"]
        assert listening and all(c.laddr.ip == "127.0.0.1" for c in listening)
        url = f"http://127.0.0.1:{listening[0].laddr.port}"
        for path in ("/health", "/v1/models", "/flush_cache"):
            assert httpx.get(url + path, trust_env=False).status_code == 403
        reply = httpx.get(url + "/v1/models", headers={"X-Sglang-Gateway": "guess"}, trust_env=False)
        assert reply.status_code == 403 and "gateway" in reply.text


def test_what_one_replica_has_is_asked_of_that_one(on_ray: RunningServer) -> None:
    wait_for_replicas(on_ray)
    with httpx.Client(base_url=on_ray.url, timeout=60, trust_env=False) as client:
        for i in range(4):
            body = {"input": f"{i} a b", "max_output_tokens": 4, "store": True}
            first = client.post("/v1/responses", json=body).json()
            follow = {"input": "and?", "max_output_tokens": 4, "previous_response_id": first["id"]}
            assert client.post("/v1/responses", json=follow).json()["previous_response_id"] == first["id"]
            assert client.get(f"/v1/responses/{first['id']}").json()["id"] == first["id"]
            session = client.post("/open_session", json={"capacity_of_str_len": 1000}).json()
            body = {"text": f"{i} x", "sampling_params": {"max_new_tokens": 3}, "session_params": {"id": session, "rid": None}}
            assert client.post("/generate", json=body).status_code == 200
            assert client.post("/close_session", json={"session_id": session}).status_code == 200
        lost = client.post("/v1/responses", json={"input": "a", "previous_response_id": "resp_none"})
        assert lost.status_code == 404 and "no replica has the response" in lost.text


def test_what_was_in_a_replica_that_is_gone(on_ray: RunningServer) -> None:
    """404 with a sentence, and soon; a session of another replica goes on."""
    wait_for_replicas(on_ray)
    with httpx.Client(base_url=on_ray.url, timeout=60, trust_env=False) as client:
        names = [client.post("/open_session", json={"capacity_of_str_len": 1000}).json() for _ in range(8)]

        def ask(name: str) -> httpx.Response:
            params = {"max_new_tokens": 3}
            body = {"text": "x", "sampling_params": params, "session_params": {"id": name, "rid": None}}
            return client.post("/generate", json=body)

        assert {ask(name).status_code for name in names} == {200}
        victim = max(servers_of(folder_of(on_ray)), key=cpu_of)
        os.kill(victim, signal.SIGKILL)
        replies = [ask(name) for name in names]
        assert {reply.status_code for reply in replies} <= {200, 404}
        lost = [reply.text for reply in replies if reply.status_code == 404]
        assert lost and all("the replica that had the session" in text for text in lost)
        wait_for_replicas(on_ray)
        assert client.post("/generate", json={"text": "x", "sampling_params": {"max_new_tokens": 3}}).status_code == 200


def test_top_has_a_line_for_each_replica(on_ray: RunningServer) -> None:
    wait_for_replicas(on_ray)
    with httpx.Client(base_url=on_ray.url, timeout=60, trust_env=False) as client:
        found = [name for name, metrics in look(client, on_ray.url).items() if "num_running_reqs" in metrics]
    assert len(found) == 2 and all(name.startswith("alpha ") for name in found)


def test_the_machine_view_shows_all_replicas(on_ray: RunningServer) -> None:
    """Also one that is started while somebody looks, in the place of one that died."""
    wait_for_replicas(on_ray)
    text = "of the machine view " * 20
    with httpx.Client(base_url=on_ray.url, timeout=120, trust_env=False) as client:
        assert client.post("/flush_cache").status_code == 200
        with client.stream("POST", "/page/live", json={}) as stream:
            assert stream.status_code == 200 and stream.headers["content-type"].startswith("text/event-stream")
            events = (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: "))
            machines = (event for event in events if "replica" in event)
            seen_of: dict[int, Any] = {}
            while len(seen_of) < 2:
                event = next(machines)
                seen_of[event["replica"]] = event["stats"]["max_total_tokens"]
            assert set(seen_of) == {0, 1} and min(seen_of.values()) > 0
            body = {"text": text, "sampling_params": {"max_new_tokens": 3}}
            httpx.post(f"{on_ray.url}/generate", json=body, timeout=60, trust_env=False).raise_for_status()
            assert any(any("machine view" in node[6] for node in event["nodes"]) for event in machines)
            os.kill(servers_of(folder_of(on_ray))[0], signal.SIGKILL)
            gone = next(event for event in machines if not event["stats"].get("max_total_tokens"))
            assert gone["first"] and not gone["nodes"]
            back = next(
                event for event in machines if event["replica"] == gone["replica"] and event["stats"].get("max_total_tokens")
            )
            assert back["first"]


def start_gateway(models: dict[str, Path], on_ray: RunningServer, log: Path) -> RunningServer:
    """Another one before the same replicas."""
    folder = str(folder_of(on_ray))
    environ = {"TMPDIR": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
    flags = ("--model-path", str(models["alpha"]), "--served-model-name", "alpha", "--ray", "auto", "--replicas", "2")
    return start_several(log, *flags, *SEED, environ=environ, seconds=300)


def test_a_second_gateway_is_killed_and_nothing_else_breaks(
    on_ray: RunningServer, alone: RunningServer, models: dict[str, Path], tmp_path: Path
) -> None:
    wait_for_replicas(on_ray)
    second = start_gateway(models, on_ray, tmp_path / "log")
    body: dict[str, Any] = {"text": "a b", "sampling_params": {"max_new_tokens": 300, "temperature": 0, "ignore_eos": True}}
    expected = said(alone.url, "/generate", body)
    assert said(second.url, "/generate", body) == expected

    def kill(count: int) -> None:
        if count == 5:
            second.process.kill()

    with pytest.raises(httpx.HTTPError):
        said(second.url, "/generate", body, kill)
    second.process.wait()
    assert said(on_ray.url, "/generate", body) == expected
    assert len(servers_of(folder_of(on_ray))) == 2


def busiest(before: dict[int, int]) -> int:
    """Since its `cpu_of` was taken."""
    return max(before, key=lambda pid: cpu_of(pid) - before[pid])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random(on_ray: RunningServer, alone: RunningServer) -> None:
    """pytest -m "cluster and slow" -k twenty tests/cluster/test_ray.py: the replica that has a stream is killed, wherever that is."""
    rng = random.Random(20)
    expected = {name: said(alone.url, path, body) for name, (path, body) in STREAMS.items()}
    num_killed = 0
    while num_killed < 20:
        name, at = rng.choice(list(STREAMS)), rng.randrange(0, 150)
        wait_for_replicas(on_ray)
        before = {pid: cpu_of(pid) for pid in servers_of(folder_of(on_ray))}

        def kill(count: int, at: int = at, before: dict[int, int] = before) -> None:
            nonlocal num_killed
            if count == at:
                os.kill(busiest(before), signal.SIGKILL)
                num_killed += 1

        path, body = STREAMS[name]
        assert said(on_ray.url, path, body, kill) == expected[name], (name, at)


@pytest.mark.slow
def test_five_hundred_requests_while_replicas_are_killed(
    on_ray: RunningServer, alone: RunningServer, models: dict[str, Path], tmp_path: Path
) -> None:
    """pytest -m "cluster and slow" tests/cluster/test_ray.py: two gateways, a replica killed every ten seconds for a minute."""
    wait_for_replicas(on_ray)
    second = start_gateway(models, on_ray, tmp_path / "log")
    began, ends = time.monotonic(), 60.0
    found: dict[int, Any] = {}
    errors: list[Any] = []
    order = iter(range(500))
    lock = threading.Lock()

    def body_of(i: int) -> dict[str, Any]:
        return {"text": f"{i} a b", "sampling_params": {"max_new_tokens": 40 + i % 50, "seed": i, "ignore_eos": True}}

    def work() -> None:
        while True:
            with lock:
                i = next(order, None)
            if i is None:
                return
            url = (on_ray.url, second.url)[i % 2]
            try:
                if i % 3:
                    found[i] = said(url, "/generate", body_of(i))["ids"]
                else:
                    reply = httpx.post(f"{url}/generate", json=body_of(i), timeout=180, trust_env=False)
                    found[i] = reply.json()["output_ids"]
            except Exception as error:  # noqa: BLE001
                errors.append((i, repr(error)))
            time.sleep(max((began + ends * i / 500) - time.monotonic(), 0))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    num_killed = 0
    while any(thread.is_alive() for thread in threads):
        time.sleep(10)
        pids = servers_of(folder_of(on_ray))
        if time.monotonic() - began < ends + 5 and pids:
            os.kill(pids[num_killed % len(pids)], signal.SIGKILL)
            num_killed += 1
    for thread in threads:
        thread.join()
    end_process(second.process, 60)
    assert not errors and sorted(found) == list(range(500)) and num_killed >= 4
    for i in range(500):
        assert found[i] == said(alone.url, "/generate", body_of(i))["ids"], i
