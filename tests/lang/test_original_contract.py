"""Requests of SGLang's own client on our server: every field that it always sends, and its ways of reading replies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..conftest import RunningServer

pytest.importorskip("uvicorn")

PARAMS: dict[str, Any] = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "max_new_tokens": 6,
    "min_new_tokens": 0,
    "n": 1,
    "stop": [],
    "stop_token_ids": None,
    "stop_regex": None,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "ignore_eos": False,
    "regex": None,
    "json_schema": None,
}


def test_gen(http: httpx.Client) -> None:
    reply = http.post("/generate", json={"text": "One, two,", "sampling_params": PARAMS})
    assert reply.status_code == 200
    meta = reply.json()["meta_info"]
    assert reply.json()["text"] and meta["completion_tokens"] <= 6 and meta["finish_reason"]["type"] in ("stop", "length")


def test_streams_are_cumulative(http: httpx.Client) -> None:
    whole = http.post("/generate", json={"text": "One, two,", "sampling_params": PARAMS}).json()["text"]
    with http.stream("POST", "/generate", json={"text": "One, two,", "sampling_params": PARAMS, "stream": True}) as reply:
        events = [line[len("data: ") :] for line in reply.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    texts = [json.loads(event)["text"] for event in events[:-1]]
    assert texts[-1] == whole and all(later.startswith(text) for text, later in zip(texts, texts[1:], strict=False))


def test_warm_up_and_select(http: httpx.Client) -> None:
    prompt, choices = "The capital of France is", [" Paris", " London"]
    first = http.post("/generate", json={"text": prompt, "sampling_params": {"max_new_tokens": 0}}).json()
    length = first["meta_info"]["prompt_tokens"]
    assert first["text"] == "" and length > 0
    body = {
        "text": [prompt + choice for choice in choices],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "return_text_in_logprobs": True,
        "logprob_start_len": max(length - 2, 0),
    }
    replies = http.post("/generate", json=body).json()
    rows = [reply["meta_info"]["input_token_logprobs"] for reply in replies]
    assert [row[0][0] for row in rows] == [None, None]
    assert [row[-1][2] for row in rows] == choices
    assert rows[0][-1][0] > rows[1][-1][0]
    ids = [[entry[1] for entry in row] for row in rows]
    alone = http.post(
        "/generate", json={"input_ids": ids, "sampling_params": {"max_new_tokens": 0}, "return_logprob": True}
    ).json()
    assert [[e[1] for e in reply["meta_info"]["input_token_logprobs"]] for reply in alone] == ids


@pytest.mark.parametrize("path", ["/get_model_info", "/model_info", "/get_server_info", "/server_info", "/v1/models"])
def test_what_is_asked_at_the_start(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200


def test_flush(http: httpx.Client) -> None:
    assert http.post("/flush_cache").status_code == 200


@pytest.mark.slow
def test_the_originals_own_client(server: RunningServer, tmp_path: Path) -> None:
    """Its package without its dependencies, which are for GPUs, and what its client does need."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    python = str(tmp_path / "bin" / "python")
    needs = ["aiohttp", "ipython", "numpy", "psutil", "pybase64", "pydantic", "requests", "setproctitle", "tqdm"]
    for packages in (["--no-deps", "sglang==0.4.9.post4"], needs):
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, timeout=600)
    script = Path(__file__).with_name("original_client.py")
    command = [python, "-I", str(script), server.url]  # -I: not the sglang that PYTHONPATH leads to
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == "0.4.9.post4"
    assert found["a"] == "".join(found["pieces"]) == found["batch"][0] and len(found["batch"]) == 2
    assert re.fullmatch("[0-9]{1,3}", found["n"]) and found["choice"] == " Paris"
    assert found["roles"] == ["system", "user", "assistant", "user", "assistant"]
    assert found["meta"]["completion_tokens"] <= 8 and found["meta"]["prompt_tokens"] > 10
    assert len(found["forks"]) == 2 and found["forks"][0] == found["forks"][1]
    assert "model_path" in found["info"]
