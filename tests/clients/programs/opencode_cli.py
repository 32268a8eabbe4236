"""opencode: `opencode run` with an OpenAI-compatible provider. Usage: opencode_cli.py URL MODEL [tools]

tools: the server answers by a script, with a command first; opencode runs it, sends its output and gets the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

URL, MODEL = sys.argv[1] + "/v1", sys.argv[2]
OFF = dict.fromkeys(("edit", "glob", "grep", "read", "skill", "task", "todowrite", "webfetch", "write"), False)
CONFIG = {
    "provider": {
        "local": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "local",
            "options": {"baseURL": URL, "apiKey": "None"},
            "models": {MODEL: {"name": MODEL, "limit": {"context": 8192, "output": 256}}},
        }
    },
    "model": f"local/{MODEL}",
    "small_model": f"local/{MODEL}",
    "agent": {"build": {"prompt": "You are an agent.", "tools": OFF}},
    "permission": {"bash": "allow"},
    "autoupdate": False,
    "share": "disabled",
}


def main() -> None:
    Path("opencode.json").write_text(json.dumps(CONFIG))
    command = ["opencode", "run", "--model", f"local/{MODEL}", "--format", "json", "Say hello."]
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}  # or it asks OpenAI
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False)
    print(done.stdout, done.stderr, file=sys.stderr)
    assert done.returncode == 0
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert not [event for event in events if event["type"] == "error"]
    texts = [event["part"]["text"] for event in events if event["type"] == "text"]
    assert texts
    if "tools" in sys.argv[3:]:
        (used,) = [event["part"] for event in events if event["type"] == "tool_use"]
        assert (used["tool"], used["state"]["status"]) == ("bash", "completed")
        assert Path("made_by_opencode").exists()
        assert texts[-1].strip() == "It is done."
    print("all good")


if __name__ == "__main__":
    main()
