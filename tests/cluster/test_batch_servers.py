"""/v1/files and /v1/batches of real servers: killed in the middle, several models behind one port, and other requests beside them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from sglang.common.batch_lines import seed_of
from sglang.common.server_process import end_process
from tests.cluster.conftest import SEED, start_several
from tests.conftest import RunningServer, start_server

pytestmark = pytest.mark.cluster
CHAT = "/v1/chat/completions"


NUM_LINES = 240
"""of a batch that is stopped in the middle"""


def lines(count: int, **body: Any) -> bytes:
    rows = []
    for i in range(count):
        more = {"messages": [{"role": "user", "content": f"{i} a b"}], "max_tokens": 24, "temperature": 1.0, "ignore_eos": True}
        rows.append({"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": {"model": "alpha", **more, **body}})
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def client(server: RunningServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, http_client=httpx.Client(trust_env=False, timeout=60))


def send(to: openai.OpenAI, data: bytes, **more: Any) -> str:
    file = to.files.create(file=("in.jsonl", data), purpose="batch")
    more = {"completion_window": "24h", "endpoint": CHAT, **more}
    return to.batches.create(input_file_id=file.id, **more).id


def ended(to: openai.OpenAI, name: str) -> Any:
    deadline = time.monotonic() + 200
    while (batch := to.batches.retrieve(name)).status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def answers(to: openai.OpenAI, file: str) -> list[Any]:
    rows = [json.loads(line) for line in to.files.content(file).text.splitlines()]
    return [(row["custom_id"], row["response"]["body"]["choices"][0]["message"]["content"]) for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "batches"


def start(models: dict[str, Path], log: Path, folder: Path, *flags: str) -> RunningServer:
    named = ("--served-model-name", "alpha", "--batch-dir", str(folder), *SEED, *flags)
    return start_server(log, *named, model=str(models["alpha"]))


@pytest.mark.timeout(900)
def test_killed_and_stopped_in_the_middle_it_ends_with_the_same_answers(
    models: dict[str, Path], tmp_path: Path, folder: Path
) -> None:
    data, name = lines(NUM_LINES, max_tokens=300), ""
    for turn, how in enumerate((signal.SIGKILL, signal.SIGTERM, None)):
        server = start(models, tmp_path / f"log{turn}", folder, "--batch-window", "3")
        try:
            to = client(server)
            name = name or send(to, data)
            before = to.batches.retrieve(name).request_counts.completed
            if how is not None:
                while to.batches.retrieve(name).request_counts.completed < before + 3:
                    time.sleep(0.02)
                assert to.batches.retrieve(name).status == "in_progress"
                server.process.send_signal(how)
                server.process.wait(60)
                continue
            assert 6 <= before < NUM_LINES
            batch = ended(to, name)
            assert batch.request_counts.model_dump() == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
            whole = ended(to, send(to, data))
            assert answers(to, batch.output_file_id) == answers(to, whole.output_file_id)
        finally:
            end_process(server.process)


@pytest.fixture(scope="module")
def shared(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two keys, and places for four requests."""
    path = tmp_path_factory.mktemp("batches")
    flags = ("--api-key", "one,two", "--max-running-requests", "4")
    server = start(models, path / "log", path / "batches", *flags)
    yield server
    server.stop()


def test_others_are_served_as_if_there_were_no_batch(shared: RunningServer) -> None:
    to, other = client(shared, "one"), client(shared, "two")
    name = send(to, lines(40, max_tokens=2000))
    while to.batches.retrieve(name).status != "in_progress":
        time.sleep(0.02)
    for i in range(5):  # all four places are taken by requests that run for long
        said = other.chat.completions.create(model="alpha", messages=[{"role": "user", "content": f"{i}"}], max_tokens=3)
        assert said.usage is not None and said.usage.completion_tokens == 3
    assert to.batches.retrieve(name).status == "in_progress"
    to.batches.cancel(name)
    assert ended(to, name).status == "cancelled"


def test_the_batches_of_two_keys_run_side_by_side(shared: RunningServer) -> None:
    to, other = client(shared, "one"), client(shared, "two")
    long, short = send(to, lines(200, max_tokens=400)), send(other, lines(3))
    assert ended(other, short).status == "completed"
    assert to.batches.retrieve(long).status == "in_progress"
    to.batches.cancel(long)
    assert ended(to, long).status == "cancelled"


def test_several_models_behind_one_port(models: dict[str, Path], alone: RunningServer, tmp_path: Path, folder: Path) -> None:
    named = [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    keys = ("--api-key", "one,two")
    server = start_several(tmp_path / "log", *named, "--max-loaded", "1", "--batch-dir", str(folder), *keys, *SEED)
    try:
        to = client(server, "two")
        rows = [*lines(4).splitlines(), *lines(4, model="beta").replace(b'_id": "r', b'_id": "b').splitlines()]
        rows.append(lines(1, model="delta").replace(b'"r0"', b'"unknown"').strip())
        batch = ended(to, send(to, b"\n".join(rows)))
        assert batch.request_counts.model_dump() == {"total": 9, "completed": 8, "failed": 1}
        found = dict(answers(to, batch.output_file_id))
        single = client(alone)
        for row in map(json.loads, rows[:4]):
            body = {"seed": None, **row["body"]}
            body["seed"] = seed_of(row["custom_id"])
            more = {"ignore_eos": body.pop("ignore_eos")}
            said = single.chat.completions.create(**body, extra_body=more)
            assert found[row["custom_id"]] == said.choices[0].message.content
        with pytest.raises(openai.NotFoundError):
            client(server, "one").batches.retrieve(batch.id)
        with pytest.raises(openai.AuthenticationError):
            client(server, "three").files.list()
    finally:
        end_process(server.process, 30)
