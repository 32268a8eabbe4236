"""LiteLLM's route anthropic/, and its own /v1/messages (the adapter and the proxy) before openai/. Usage: litellm_messages.py URL MODEL"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import litellm

URL, MODEL = sys.argv[1:3]
HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
OPENAI_TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": SCHEMA}}
TOOL = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
ROME = [{"role": "user", "content": "What is the weather in Rome?"}]


def anthropic_route() -> None:
    ask = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": "none", "temperature": 0, "max_tokens": 60}
    reply = litellm.completion(messages=HELLO, **ask)
    assert "Paris" in reply.choices[0].message.content
    chunks = list(litellm.completion(messages=HELLO, stream=True, **ask))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == reply.choices[0].message.content
    called = litellm.completion(messages=ROME, tools=[OPENAI_TOOL], tool_choice="required", **ask)
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments) == {"city": "Rome"}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(messages=ROME, response_format=form, **ask)
    assert "city" in json.loads(answer.choices[0].message.content)


async def messages_adapter() -> None:
    """Requests of Anthropic's clients, which LiteLLM sends on as chats or responses."""
    ask = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "max_tokens": 60, "temperature": 0}
    reply = await litellm.anthropic.messages.acreate(messages=HELLO, **ask)
    assert "Paris" in reply["content"][0]["text"], reply
    choice = {"type": "tool", "name": "get_weather"}
    called = await litellm.anthropic.messages.acreate(messages=ROME, tools=[TOOL], tool_choice=choice, **ask)
    assert [block["input"] for block in called["content"] if block["type"] == "tool_use"] == [{"city": "Rome"}], called


def proxy() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rows = [
        {"model_name": kind, "litellm_params": {"model": f"{kind}/{MODEL}", "api_base": base, "api_key": "none"}}
        for kind, base in (("openai", f"{URL}/v1"), ("anthropic", URL))
    ]
    Path("proxy.yaml").write_text(json.dumps({"model_list": rows}))
    command = [
        str(Path(sys.executable).parent / "litellm"),
        "--config",
        "proxy.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    key = f"sk-{secrets.token_hex(32)}"
    own = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key}
    with Path("proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": key}, timeout=120, trust_env=False
        ) as http:
            wait_for(http, process)
            for row in rows:
                body = {"model": row["model_name"], "max_tokens": 24, "messages": HELLO, "temperature": 0}
                reply = http.post("/v1/messages", json=body)
                assert reply.status_code == 200 and "Paris" in reply.text, reply.text
                assert "message_stop" in http.post("/v1/messages", json={**body, "stream": True}).text
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_for(http: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert process.poll() is None, Path("proxy.log").read_text()[-3000:]
        try:
            if http.get("/health/liveliness").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(Path("proxy.log").read_text()[-3000:])


def main() -> None:
    anthropic_route()
    asyncio.run(messages_adapter())
    proxy()
    print("all good")


if __name__ == "__main__":
    main()
