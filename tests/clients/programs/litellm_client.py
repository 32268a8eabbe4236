"""LiteLLM: completion, streams, async, text completion, errors. Usage: litellm_client.py URL MODEL"""

from __future__ import annotations

import asyncio
import sys

import litellm

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
HELLO = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
COMMON = {"api_base": URL, "api_key": "None"}


def main() -> None:
    for provider in ("openai", "hosted_vllm"):
        reply = litellm.completion(model=f"{provider}/{MODEL}", messages=HELLO, temperature=0, max_tokens=24, **COMMON)
        assert "Paris" in reply.choices[0].message.content and reply.usage.completion_tokens > 0
        assert reply.choices[0].finish_reason in ("stop", "length")
    chunks = list(
        litellm.completion(model=f"openai/{MODEL}", messages=HELLO, temperature=0, max_tokens=24, stream=True, **COMMON)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == reply.choices[0].message.content
    several = asyncio.run(litellm.acompletion(model=f"openai/{MODEL}", messages=HELLO, n=2, max_tokens=5, **COMMON))
    assert len(several.choices) == 2
    text = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="Once upon", max_tokens=5, **COMMON)
    assert text.choices[0].text
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = litellm.completion(
        model=f"openai/{MODEL}",
        messages=HELLO,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
        **COMMON,
    )
    assert '"ok"' in answer.choices[0].message.content
    try:
        litellm.completion(model=f"openai/{MODEL}", messages=HELLO, temperature=-3, num_retries=0, **COMMON)
    except litellm.BadRequestError as error:
        assert "temperature" in str(error)
    else:
        raise AssertionError("a negative temperature was accepted")
    print("all good")


if __name__ == "__main__":
    main()
