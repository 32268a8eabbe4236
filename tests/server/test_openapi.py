"""/openapi.json: valid, about every route, and true of what the server takes and answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from starlette.routing import Route

from sglang.srt.server.openapi.operation import operation_of
from sglang.srt.server.page.files import PageFiles
from tests.conftest import RunningServer, start_server
from tests.server.conftest import MakeStand, Stand
from tests.server.http_tools import client_of

EMBED = ("/v1/embeddings", "/encode", "/v1/rerank")
NEED_ADAPTERS = {f"{version}/{verb}_lora_adapter" for version in ("", "/v1") for verb in ("load", "unload")}
"""what this server has none of: test_adapters.py"""
STOPS_OTHERS = ("/pause_generation", "/continue_generation", "/start_profile", "/stop_profile")
PAGES = frozenset({"/", "/docs", "/openapi.json", "/page/live", "/page/request", *PageFiles().paths})


@pytest.fixture
async def document(stand: Stand) -> dict[str, Any]:
    async with client_of(stand) as client:
        found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


def routes_of(stand: Stand) -> list[Route]:
    return [route for route in stand.app.routes if isinstance(route, Route) and route.path not in PAGES]


def in_document(path: str) -> str:
    return re.sub(r":\w+}", "}", path)


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, said) for path, methods in document["paths"].items() for method, said in methods.items()]


def body_schema(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


async def test_it_is_valid_and_names_no_operation_twice(document: dict[str, Any]) -> None:
    validate(document)
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


async def test_it_is_about_every_route_and_no_other(stand: Stand, document: dict[str, Any]) -> None:
    there = {
        (in_document(route.path), method.lower())
        for route in routes_of(stand)
        for method in (route.methods or ())
        if method != "HEAD"
    }
    assert {(path, method) for path, method, _ in operations(document)} == there


async def test_it_has_every_field_with_what_it_is_for(stand: Stand, document: dict[str, Any]) -> None:
    bodies = 0
    for route in routes_of(stand):
        operation = operation_of(route.endpoint)
        assert operation is not None, route.path
        if operation.body is None:
            continue
        bodies += 1
        method = sorted(route.methods or ())[0].lower()
        schema = body_schema(document, document["paths"][in_document(route.path)][method])
        fields = operation.body
        assert set(schema["properties"]) == fields.read | fields.ignored, route.path
        assert schema["additionalProperties"] is fields.takes_hints
        for name, member in schema["properties"].items():
            said = document["components"]["schemas"][member["$ref"].rpartition("/")[2]] if "$ref" in member else member
            assert said.get("description"), (route.path, name)
    assert bodies >= 20


async def test_a_route_takes_the_fields_that_it_names_and_refuses_others(stand: Stand, document: dict[str, Any]) -> None:
    async with client_of(stand) as client:
        for path, method, operation in operations(document):
            if "requestBody" not in operation or path == "/abort_request":
                continue
            schema = body_schema(document, operation)
            examples = operation["requestBody"]["content"]["application/json"]["examples"]
            example = next(iter(examples.values()))["value"]
            for name in schema["properties"]:
                if name not in example:
                    reply = await client.request(method, path, json={**example, name: None})
                    assert "unknown" not in reply.text, (path, name, reply.text)
            reply = await client.request(method, path, json={**example, "zzzzzz": 1})
            is_unknown = reply.status_code == 400 and "zzzzzz" in reply.text
            assert is_unknown is not schema["additionalProperties"], (path, reply.text)


async def test_keys_and_the_path_of_a_proxy(make_stand: MakeStand, document: dict[str, Any]) -> None:
    assert {} in document["security"] and document["servers"] == [{"url": "/"}]
    async with client_of(make_stand(api_keys=("k",), root_path="/llm"), Authorization="Bearer k") as client:
        guarded = (await client.get("/openapi.json")).json()
        assert guarded["security"] == [{"bearer": []}, {"x-api-key": []}] and guarded["servers"] == [{"url": "/llm"}]


# --- what it says is so -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = start_server(tmp_path_factory.mktemp("embedder") / "log", "--is-embedding")
    yield server
    server.process.kill()
    server.process.wait()


class Judge:
    """Whether replies are what a document says."""

    def __init__(self, document: dict[str, Any]) -> None:
        resource: Resource[Any] = Resource.from_contents(document, DRAFT202012)
        self._registry = Registry().with_resource("urn:document", resource)

    def check(self, value: Any, schema: dict[str, Any]) -> None:
        text = json.dumps(schema).replace("#/components/", "urn:document#/components/")
        jsonschema.Draft202012Validator(json.loads(text), registry=self._registry).validate(value)

    def check_reply(self, operation: dict[str, Any], reply: httpx.Response) -> None:
        content = operation["responses"][str(reply.status_code)].get("content", {})
        kind = reply.headers.get("content-type", "").partition(";")[0]
        if not content:
            assert reply.content == b""
        elif kind == "text/event-stream":
            events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
            assert events
            for event in events:
                if event != "[DONE]":
                    self.check(json.loads(event), content[kind]["schema"])
        else:
            self.check(reply.json() if kind == "application/json" else reply.text, content[kind]["schema"])


def test_every_example_is_answered_as_the_document_says(server: RunningServer, embedder: RunningServer) -> None:
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
    judge, sent, streamed = Judge(document), 0, 0
    for path, method, operation in operations(document):
        if path in STOPS_OTHERS or path in NEED_ADAPTERS:
            continue
        url = (embedder if path in EMBED else server).url + re.sub(r"{\w+}", "unknown", path)
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in [example["value"] for example in content.get("examples", {}).values()] or [None]:
            if content and "session_id" in example:  # there is one of a name
                example = {"session_id": f"example-{method}"}
            body = {"json": example} if content else {}
            reply = httpx.request(method, url, trust_env=False, timeout=120, **body)  # type: ignore[arg-type]
            wanted = 400 if operation.get("deprecated") else 404 if "{" in path or path == "/metrics" else 200
            assert reply.status_code == wanted, (path, method, example, reply.text)
            judge.check_reply(operation, reply)
            sent += content != {}
            streamed += reply.headers.get("content-type", "").startswith("text/event-stream")
            if content:
                judge.check(example, content["schema"])
        if content:
            reply = httpx.request(method, url, trust_env=False, timeout=120, json={"nonsense": 1, "messages": 3, "input": 3})
            assert reply.status_code == 400
            judge.check_reply(operation, reply)
    assert sent >= 30 and streamed >= 4


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from sglang_client import Client
from sglang_client.api.native import post_generate
from sglang_client.api.open_ai import post_v1_chat_completions
from sglang_client.models import ChatRequest, ChatMessage, GenerateRequest, SamplingParams, ChatMessageRole

client = Client(base_url=sys.argv[1])
asked = GenerateRequest(text="The capital of France is", sampling_params=SamplingParams(temperature=0, max_new_tokens=4))
print(post_generate.sync(client=client, body=asked).text)
chat = ChatRequest(messages=[ChatMessage(role=ChatMessageRole.USER, content="Name the capital of France.")], temperature=0, max_tokens=16)
print(post_v1_chat_completions.sync(client=client, body=chat).choices[0].message.content)
"""


@pytest.mark.slow
def test_a_client_generated_from_it_works(server: RunningServer, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    document.write_text(httpx.get(f"{server.url}/openapi.json", trust_env=False).text)
    made = subprocess.run(
        [Path(sys.executable).parent / "openapi-python-client", "generate", "--path", document, "--meta", "none"]
        + ["--output-path", tmp_path / "sglang_client"],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0 and "warning" not in made.stdout.lower(), made.stdout + made.stderr
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, program, server.url, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("Paris") == 2, done.stdout + done.stderr
