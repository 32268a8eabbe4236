"""Claude Code, claude -p. Usage: claude_code.py URL MODEL [whole | tools]

Its whole prompt is refused where the context is short, and a short one answered; with `whole` it is answered; with `tools` its model
asks for a command, which it runs.

The binary comes with its npm package, for this machine's processor, and needs no node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

URL, MODEL = sys.argv[1:3]
PACKAGES = Path("node_modules").resolve() / "@anthropic-ai"
SHORT = ("--tools", "", "--system-prompt", "You are a helpful assistant.")


def claude(*arguments: str, fails: bool = False) -> dict[str, Any]:
    """What it says of its run, as JSON."""
    (binary,) = PACKAGES.glob("claude-code-*/claude")
    own = {"ANTHROPIC_BASE_URL": URL, "ANTHROPIC_AUTH_TOKEN": "none", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    command = [str(binary), "--model", MODEL, "--output-format", "json", *arguments]
    done = subprocess.run(command, env=os.environ | own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500)
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def small_context() -> None:
    """The default model's context is shorter than the prompt; that it is said as Anthropic does tells the person what to do.
    With a short prompt its 32,000 tokens of output are too many, and it asks for fewer."""
    refused = claude("-p", "Say hello.", fails=True)
    assert "Prompt is too long" in refused["result"] and "(limit 8191)" in refused["result"], refused
    answered = claude("-p", "What is the capital of France?", *SHORT)
    assert answered["subtype"] == "success" and answered["stop_reason"] == "end_turn" and answered["result"], answered


def whole() -> None:
    """The prompt with all tools and the 32,000 tokens of output are more than the context: it asks again for what fits."""
    answered = claude("-p", "What is the capital of France?")
    assert answered["subtype"] == "success" and answered["result"] and answered["usage"]["input_tokens"] > 8192, answered


def tools() -> None:
    """A command that its model asks for, allowed; then the answer. With the whole prompt and all tools, and with few."""
    for i, few in enumerate(((), ("--tools", "Bash", "--system-prompt", "Be brief."))):
        made = Path(f"made_by_claude_{i}")
        done = claude("-p", f"Make the file {made}.", "--allowedTools", "Bash", *few)
        assert done["result"] == "It is done." and done["num_turns"] == 2, done
        assert made.exists()


def main() -> None:
    {"": small_context, "whole": whole, "tools": tools}["".join(sys.argv[3:])]()
    print("all good")


if __name__ == "__main__":
    main()
