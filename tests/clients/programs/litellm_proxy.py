"""LiteLLM's proxy before the server, by its openai/ and hosted_vllm/ routes: chats, responses, messages, streams, tools.
Usage: litellm_proxy.py URL MODEL"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import anthropic
import httpx
import openai

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
ROUTES = ("openai", "hosted_vllm")
SETTINGS = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
QUESTION = "What is the capital of France? Answer in one sentence."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while True:
        assert process.poll() is None and time.monotonic() < deadline, Path("proxy.log").read_text()[-3000:]
        try:
            if httpx.get(f"{url}/health/liveliness", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)


def chats(client: openai.OpenAI, name: str) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    reply = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=24)
    assert "Paris" in reply.choices[0].message.content
    chunks = list(client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=24, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == reply.choices[0].message.content


def responses(client: openai.OpenAI, name: str) -> None:
    common = {"model": name, "input": QUESTION, "temperature": 0, "max_output_tokens": 24}
    reply = client.responses.create(**common)
    assert "Paris" in reply.output_text
    with client.responses.stream(**common) as stream:
        assert stream.until_done().get_final_response().output_text == reply.output_text
    tool = {"type": "function", "name": "get_weather", "description": "Weather", "parameters": SCHEMA}
    asked = client.responses.create(**{**common, "input": "Weather in Rome?"}, tools=[tool], tool_choice="required")
    call = next(item for item in asked.output if item.type == "function_call")
    assert call.name == "get_weather" and "city" in json.loads(call.arguments)


def messages(client: anthropic.Anthropic, name: str) -> None:
    common = {"model": name, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24}
    common["extra_body"] = {"temperature": 0}
    reply = client.messages.create(**common)
    assert "Paris" in reply.content[0].text and reply.usage.output_tokens > 0
    with client.messages.stream(**common) as stream:
        assert stream.get_final_message().content[0].text == reply.content[0].text
    tool = {"name": "get_weather", "description": "Weather", "input_schema": SCHEMA}
    question = {"role": "user", "content": "Weather in Rome?"}
    common |= {"messages": [question], "tools": [tool], "max_tokens": 60}
    asked = client.messages.create(**common, tool_choice={"type": "tool", "name": "get_weather"})
    call = next(block for block in asked.content if block.type == "tool_use")
    assert call.name == "get_weather" and "city" in call.input and asked.stop_reason == "tool_use"
    used = {"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"}
    history = [question, {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    assert client.messages.create(**{**common, "messages": history}, tool_choice={"type": "none"}).content


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    entries = [
        {"model_name": route, "litellm_params": {"model": f"{route}/{MODEL}", "api_base": URL, "api_key": "None"}}
        for route in ROUTES
    ]
    Path("proxy.json").write_text(json.dumps({"model_list": entries, "litellm_settings": {"num_retries": 0}}))
    program = Path(sys.executable).with_name("litellm")
    command = [str(program), "--config", "proxy.json", "--port", str(port), "--host", "127.0.0.1", "--telemetry", "False"]
    with Path("proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | SETTINGS)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            for name in ROUTES:
                chats(client, name)
                responses(client, name)
        with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as claude:
            for name in ROUTES:
                messages(claude, name)
    except Exception:
        print(Path("proxy.log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        process.kill()
    print("all good")


if __name__ == "__main__":
    main()
