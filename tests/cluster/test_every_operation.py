"""Every operation of openapi.json with each of its examples, and without a body, streamed and not: what is in front changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.cluster.test_cut_streams import told
from tests.cluster.test_replicas import pair  # noqa: F401  # a fixture
from tests.cluster.test_several import TIMED
from tests.conftest import RunningServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

OF_ONE_SERVER = (
    "/metrics",
    "/get_server_info",
    "/get_load",
    "/health",
    "/page/",
    "/server_info",
    "/models",
    "/v1/models",
    "/v1/loads",
    "/start_profile",
    "/stop_profile",
)
"""what tells of a server, its flags and its load"""
NAMED = re.compile(r'"(id|response_id|item_id|request_id)":\s*"[^"]*"')
OF_TIME = re.compile(
    r'"(sequence_number|created|created_at|completed_at|cached_tokens|cache_read_input_tokens|spec_[a-z_]+)":\s*[0-9.]+'
)


def calls(spec: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            if path.startswith(OF_ONE_SERVER) or method not in ("get", "post", "put", "delete"):
                continue
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            given = [one["value"] for one in content.get("examples", {}).values()]
            bodies = [*given, *([content["example"]] if "example" in content else [])] or [None]
            streams = "text/event-stream" in json.dumps(operation.get("responses", {}))
            for body in bodies:
                url = re.sub(r"\{[^}]+\}", "nothing", path)
                if body is None or not streams:
                    yield method, url, body
                    continue
                whole = greedy(url, body)
                yield method, url, {**whole, "stream": False}
                yield method, url, {**whole, "stream": True}


def greedy(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Sampled answers without a seed are no two times the same."""
    if url == "/generate":
        params = body.get("sampling_params") or {}
        return {**body, "sampling_params": {**params, "temperature": 0} if isinstance(params, dict) else params}
    return {**body, "temperature": 0} if url.startswith("/v1/") else body


def seen(reply: httpx.Response) -> tuple[int, str, Any]:
    """Of a stream what its events say together: where they are cut may differ."""
    text = OF_TIME.sub("", NAMED.sub("", TIMED.sub("", reply.text)))
    kind = reply.headers.get("content-type", "")
    return reply.status_code, kind, said_by(text) if kind.startswith("text/event-stream") else text


def said_by(text: str) -> dict[str, Any]:
    """As `told`, of a text out of which values were taken, with the commas around them."""
    return told(re.sub(r"([{,])(?:\s*,)+", r"\1", text).replace(",}", "}").replace("{,", "{").encode())


def differences(alone: RunningServer, front: RunningServer) -> tuple[int, list[Any]]:
    """The number of calls, and those that are answered differently."""
    count, found = 0, []
    with (
        httpx.Client(base_url=alone.url, timeout=120, trust_env=False) as one,
        httpx.Client(base_url=front.url, timeout=120, trust_env=False) as other,
    ):
        spec = one.get("/openapi.json").json()
        assert other.get("/openapi.json").json()["paths"].keys() == spec["paths"].keys()
        for method, url, body in calls(spec):
            replies = []
            for client in (one, other):
                client.post("/flush_cache")
                replies.append(seen(client.request(method, url, json=body)))
            count += 1
            if replies[0] != replies[1]:
                found.append((method, url, body, *replies))
    return count, found


@pytest.mark.parametrize("front", ["several", "pair"])
def test_every_operation_answers_as_one_server(alone: RunningServer, front: str, request: pytest.FixtureRequest) -> None:
    count, found = differences(alone, request.getfixturevalue(front))
    assert count > 60 and not found, "\n".join(str(one)[:1000] for one in found)
