"""The programs that people have, by the route that they use. Versions are pinned: a new one is taken on purpose."""

from __future__ import annotations

from tests.clients.environments import Client

CHAT = (
    Client("openai_client.py", "chats, completions, streams, parse, errors, models", pip=("openai==3.57.0",)),
    Client(
        "langchain_client.py", "ChatOpenAI: invoke, stream, batch, structured output, tools", pip=("langchain-openai==1.7.4",)
    ),
    Client("litellm_client.py", "completion, streams, text completion, errors", pip=("litellm==1.110.2",)),
    Client("instructor_client.py", "structured answers in its modes, partial ones", pip=("instructor==1.17.0",)),
    Client("lm_eval_client.py", "choices by log probability, generated answers", pip=("lm-eval[api]==0.4.13",), timeout=1200),
)

CODEX = ("@openai/codex@0.171.0",)
MAKES_A_FILE = (
    ("Result of exec_command", "It is done."),
    ("Say hello.", '{"name": "exec_command", "arguments": {"cmd": "touch made_by_codex"}}'),
)
RESPONSES = (
    Client(
        "openai_node.mjs", "responses and chats: whole, streamed, parsed, tools, errors", npm=("openai@7.59.0", "zod@4.6.7")
    ),
    Client("codex_cli.py", "codex exec: one turn", npm=CODEX),
    Client(
        "codex_cli.py", "codex exec: a command, its output, the answer", npm=CODEX, arguments=("tools",), script=MAKES_A_FILE
    ),
)

MESSAGES: tuple[Client, ...] = ()

CLIENTS = (*CHAT, *RESPONSES, *MESSAGES)
