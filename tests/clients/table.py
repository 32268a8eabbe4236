"""Popular client programs, by the route that they use. Versions are pinned, and changed on purpose."""

from __future__ import annotations

import json

from tests.clients.environments import Client

OPENAI = "openai==3.57.0"
CHAT = (
    Client("openai_client.py", "chats, completions, streams, deltas, parse, tools, hints, raw replies, errors", pip=(OPENAI,)),
    Client(
        "pydantic_ai_client.py",
        "answers, hints, streams, output by tool, by schema, by prompt, and as text; tools",
        pip=("pydantic-ai-slim[openai]==2.68.0", OPENAI),
    ),
    Client(
        "instructor_client.py",
        "TOOLS, TOOLS_STRICT, JSON_SCHEMA, JSON, MD_JSON, JSON_O1, PARALLEL_TOOLS; partial, lists, unions, async",
        pip=("instructor==1.17.0",),
    ),
    Client(
        "langchain_client.py",
        "ChatOpenAI, OpenAI, VLLMOpenAI: invoke, stream, batch, three methods of structured output, tools",
        pip=("langchain-openai==1.7.4", "langchain-community==0.4.2", OPENAI),
    ),
    Client(
        "litellm_client.py",
        "openai/, hosted_vllm/, litellm_proxy/: answers, streams, hints, tools, schemas, texts, errors",
        pip=("litellm==1.110.2", OPENAI),
    ),
    Client(
        "outlines_client.py",
        "its OpenAI, vLLM and SGLang models: schemas, choices, patterns, grammars, streams",
        pip=("outlines[openai]==1.3.3", OPENAI),
    ),
    Client("guidance_client.py", "its SGLang and vLLM models: patterns, choices, JSON", pip=("guidance==0.3.1", OPENAI)),
    Client("dspy_client.py", "predictions, chains of thought, two adapters, ReAct", pip=("dspy==3.4.1", "litellm==1.110.2")),
    Client(
        "llama_index_client.py",
        "OpenAILike: chats, completions, streams, tools, structured answers",
        pip=("llama-index-llms-openai-like==0.8.1",),
    ),
    Client("smolagents_client.py", "its OpenAI model, tools, three agents", pip=("smolagents[openai]==1.26.0", OPENAI)),
    Client("haystack_client.py", "chat generator, pipeline, tools, schema, streams", pip=("haystack-ai==3.4.1", OPENAI)),
    Client(
        "lm_eval_client.py",
        "choices and whole texts by log probability, generated answers",
        pip=("lm-eval[api]==0.4.13",),
        timeout=1200,
    ),
)

CODEX = ("@openai/codex@0.171.0",)
AI_SDK = ("ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@3.0.92", "zod@4.6.7")
AGENTS = ("openai-agents==0.24.0", "openai==3.57.0")
OPENCODE = ("opencode-ai@1.18.33",)
LITELLM = ("litellm[proxy]==1.106.12", "anthropic==2.14.0")
MAKES_A_FILE = (
    ("title generator", "A greeting"),
    ("Result of exec_command", "It is done."),
    ("Result of bash", "It is done."),
    ('{"name": "bash"', '{"name": "bash", "arguments": {"command": "touch made_by_opencode", "description": "Makes a file"}}'),
    ("Say hello.", '{"name": "exec_command", "arguments": {"cmd": "touch made_by_codex"}}'),
)
WEATHER = (
    ("It rains in Rome.", "Take an umbrella."),
    ("weather in Rome?", '{"name": "get_weather", "arguments": {"city": "Rome"}}'),
    ("Who knows", '{"name": "transfer_to_weather", "arguments": {}}'),
)
RESPONSES = (
    Client("openai_responses.py", "responses: whole, streamed, stored, parsed, tools, errors", pip=("openai==3.57.0",)),
    Client(
        "openai_node.mjs", "responses and chats: whole, streamed, parsed, tools, errors", npm=("openai@7.59.0", "zod@4.6.7")
    ),
    Client("openai_agents.py", "both models: text, streams, typed answers", pip=AGENTS),
    Client("openai_agents.py", "both models: a tool, a session, a hand-off", pip=AGENTS, arguments=("tools",), script=WEATHER),
    Client("ai_sdk.mjs", "responses, chat, compatible: text, streams, objects, a forced call", npm=AI_SDK),
    Client("ai_sdk.mjs", "the same three: a tool, its result, the answer", npm=AI_SDK, arguments=("tools",), script=WEATHER),
    Client("instructor_responses.py", "both modes of responses: models, raw, partial, async", pip=("instructor==1.17.0",)),
    Client("litellm_proxy.py", "behind its proxy: chats, responses, messages, streams, tools", pip=LITELLM, timeout=1200),
    Client("opencode_cli.py", "opencode run: one turn", npm=OPENCODE),
    Client(
        "opencode_cli.py",
        "opencode run: a command, its output, the answer",
        npm=OPENCODE,
        arguments=("tools",),
        script=MAKES_A_FILE,
    ),
    Client("codex_cli.py", "codex exec: one turn", npm=CODEX),
    Client(
        "codex_cli.py", "codex exec: a command, its output, the answer", npm=CODEX, arguments=("tools",), script=MAKES_A_FILE
    ),
)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
CLAUDE_CODE = ("@anthropic-ai/claude-code@2.1.332",)
INSTRUCTOR = ("instructor==1.17.0", "anthropic==2.14.0")
PERSON = (
    ("Validation Error", '{"name": "Jason", "age": 25}'),
    ("Wrong at first", '{"name": "Jason", "age": "young"}'),
    ("In a fence", 'Here it is:\n```json\n{"name": "Jason", "age": 25}\n```'),
    ("Jason is 25", '{"name": "Jason", "age": 25}'),
)
PYDANTIC_AI = ("pydantic-ai-slim[anthropic]==2.68.0",)
GREEDY = ("--preferred-sampling-params", '{"temperature": 0}')
"""Claude Code sets no temperature, and a small model that samples finds no end"""
LONG_CONTEXT = (
    *("--json-model-override-args", json.dumps({"rope_scaling": YARN, "max_position_embeddings": 32_768})),
    *("--max-total-tokens", "33000", "--preferred-sampling-params", '{"temperature": 0, "stop": ["."]}'),
)
MAKES_FILES = (
    ("Result of Bash", "It is done."),
    ("made_by_claude_0", '{"name": "Bash", "arguments": {"command": "touch made_by_claude_0", "description": "Make it"}}'),
    ("made_by_claude_1", '{"name": "Bash", "arguments": {"command": "touch made_by_claude_1", "description": "Make it"}}'),
)
MESSAGES = (
    Client("anthropic_sdk.py", "messages: whole, streamed, parsed, tool runner, counts, errors", pip=("anthropic==2.14.0",)),
    Client(
        "anthropic_node.mjs",
        "messages: whole, streamed, parsed, tool runner, counts, errors",
        npm=("@anthropic-ai/sdk@1.14.0", "zod@4.6.7"),
    ),
    Client(
        "ai_sdk_messages.mjs",
        "text, streams, streamed calls, objects",
        npm=("ai@7.0.173", "@ai-sdk/anthropic@4.0.105", "zod@4.6.7"),
    ),
    Client(
        "langchain_messages.py",
        "ChatAnthropic: invoke, stream, batch, structured output, tools, documents",
        pip=("langchain-anthropic==1.7.10",),
    ),
    Client("instructor_messages.py", "tools, parallel tools, partial answers, JSON held to a schema", pip=INSTRUCTOR),
    Client(
        "instructor_messages.py",
        "its three JSON modes: plain, in a fence, wrong at first, partial",
        pip=INSTRUCTOR,
        arguments=("json",),
        script=PERSON,
    ),
    Client("pydantic_ai_messages.py", "text, streams, typed answers", pip=PYDANTIC_AI),
    Client("pydantic_ai_messages.py", "a tool, its result, the answer", pip=PYDANTIC_AI, arguments=("tools",), script=WEATHER),
    Client(
        "litellm_messages.py",
        "anthropic/, and /v1/messages of the adapter and the proxy before openai/",
        pip=("litellm[proxy]==1.108.7",),
    ),
    Client(
        "claude_code.py",
        "claude -p: its whole prompt refused in its words, a short one answered",
        npm=CLAUDE_CODE,
        flags=GREEDY,
    ),
    Client(
        "claude_code.py",
        "claude -p: its whole prompt answered in a context of 32,768",
        npm=CLAUDE_CODE,
        arguments=("whole",),
        flags=LONG_CONTEXT,
    ),
    Client(
        "claude_code.py",
        "claude -p: a command that it runs, the answer",
        npm=CLAUDE_CODE,
        arguments=("tools",),
        script=MAKES_FILES,
    ),
)

CLIENTS = (*CHAT, *RESPONSES, *MESSAGES)
