"""Codex CLI: `codex exec` with its own provider. Usage: codex_cli.py URL MODEL [tools]

tools: the server answers by a script, with a command first; Codex runs it, sends its output and gets the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
CONFIG = f"""
model = "{MODEL}"
model_provider = "local"
model_context_window = 8192
model_instructions_file = "{Path("instructions.md").resolve()}"
sandbox_mode = "danger-full-access"
approval_policy = "never"
web_search = "disabled"

[features]
multi_agent = false
goals = false

[model_providers.local]
name = "local"
base_url = "{URL}"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""


def run_codex(prompt: str) -> list[dict[str, object]]:
    """The events of one run."""
    command = ["codex", "exec", "--skip-git-repo-check", "--json", prompt]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    print(done.stdout, done.stderr, file=sys.stderr)
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def items_of(events: list[dict[str, object]], kind: str) -> list[dict[str, object]]:
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return [item for item in items if item["type"] == kind]


def main() -> None:
    home = Path(os.environ["HOME"]) / ".codex"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG)
    Path("instructions.md").write_text("You are a coding agent.")
    events = run_codex("Say hello.")
    assert events[-1]["type"] == "turn.completed" and events[-1]["usage"]["output_tokens"] > 0
    assert items_of(events, "agent_message")[-1]["text"]
    if "tools" in sys.argv[3:]:
        (command,) = items_of(events, "command_execution")
        assert (command["exit_code"], command["status"]) == (0, "completed")
        assert Path("made_by_codex").exists()
        assert items_of(events, "agent_message")[-1]["text"] == "It is done."
    print("all good")


if __name__ == "__main__":
    main()
