"""The first minutes of a new user, in a real terminal (scripts/newcomer starts this).

fresh folder   the files of this checkout, HOME empty, no environment active
terminal 1     make serve, as README.md says
terminal 2     in another folder: what the server printed, pasted; a chat, Ctrl-C
terminal 3     in the checkout: the commands of README.md, pasted
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pexpect

ROOT = Path(__file__).parents[1]
PROMPT = "newcomer$ "
PORT = 30000
OTHERS = ("XDG_", "VIRTUAL_ENV", "PYTHON", "SGLANG_", "MAKE", "MFLAGS", "VISION")
"""beginnings of names that a newcomer's environment has not; make hands its variables on to what it runs"""
MAX_MIB = 230
"""of .venv without vision"""
QUESTION = "What is the capital of France?"
SEEDS = ROOT.parent / "shared" / "seeds"


class Terminal:
    """A shell in a new terminal of 100 columns."""

    def __init__(self, folder: Path, home: Path) -> None:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(OTHERS)}
        cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True)
        env = keep | {"HOME": str(home), "TERM": "xterm", "PS1": PROMPT, "PIP_CACHE_DIR": cache.stdout.strip()}
        self.shell = pexpect.spawn(
            "bash",
            ["--norc", "--noprofile"],
            cwd=folder,
            env=env,
            encoding="utf-8",
            codec_errors="replace",
            dimensions=(50, 100),
            preexec_fn=heed_interrupts,
        )
        self.shell.delaybeforesend = None
        self.wait(PROMPT, 10)

    def wait(self, text: str, seconds: float) -> str:
        """The output up to `text`. Ends the program with the output so far if it does not come."""
        try:
            self.shell.expect_exact(text, timeout=seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            fail(f"{text!r} did not come within {seconds:g} s", str(self.shell.before))
        return str(self.shell.before)

    def paste(self, command: str) -> None:
        self.shell.sendline(command)

    def run(self, command: str, seconds: float = 120) -> str:
        """A command's output. It must succeed."""
        self.paste(command + '\necho "status=$?"')
        seen = ""
        while not (found := re.search(r"^status=(\d+)$", seen, re.MULTILINE)):
            seen += plain(self.wait("\n", seconds)) + "\n"
        if found[1] != "0":
            fail(f"status {found[1]} of: {command}", seen)
        self.wait(PROMPT, 10)
        return seen

    def interrupt(self) -> None:
        self.shell.sendintr()

    def close(self) -> None:
        self.shell.close(force=True)


def heed_interrupts() -> None:
    """A shell that was started in the background ignores Ctrl-C, and so would all that this script starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def plain(text: str) -> str:
    """Without what moves the cursor and colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


def fail(what: str, seen: str) -> None:
    raise SystemExit(f"newcomer: {what}\n--- seen ---\n{seen[-6000:]}")


def check(is_so: bool, what: str, seen: str = "") -> None:
    if not is_so:
        fail(what, seen)
    print(f"ok: {what}", flush=True)


def copy_checkout(folder: Path) -> None:
    """The files of this checkout, as a clone would have them."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.split(b"\0")
    for name in (os.fsdecode(name) for name in names if name):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def readme_commands() -> list[str]:
    """The commands of README.md, save for those of make, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block.strip() for block in blocks if not re.match(r"(make|git) ", block)]


def welcome_commands(screen: str) -> list[str]:
    """The commands in what the server printed, in order."""
    lines = screen.replace("\r", "").split("In another terminal:", 1)[1].splitlines()
    text = "\n".join(lines)
    found = re.findall(r"^(?:\S*sglang chat .*|curl .*\\\n.*|\S*python - <<'EOF'\n(?:.*\n)*?EOF)$", text, re.MULTILINE)
    return [str(command) for command in found]


def chat(terminal: Terminal, command: str) -> None:
    """A conversation: an answer, one that is stopped, one with a length limit, and the end."""
    terminal.paste(command)
    terminal.wait("> ", 60)
    terminal.paste(QUESTION)
    answer = terminal.wait("tokens", 60)
    check("Paris" in answer.partition(QUESTION)[2], f"chat answers: {QUESTION}", answer)
    terminal.wait("> ", 30)
    terminal.paste("/set ignore_eos true\n/set max_tokens 4000\nTell me a long story.")
    terminal.wait("story.", 30)
    time.sleep(1.5)
    terminal.interrupt()
    check("stopped]" in terminal.wait("> ", 30) + str(terminal.shell.after), "Ctrl-C stops the answer")
    terminal.interrupt()
    terminal.wait("again", 10)
    terminal.interrupt()
    terminal.wait(PROMPT, 20)
    check(True, "Ctrl-C twice leaves the chat")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vision", action="store_true")
    args = parser.parse_args()
    if not is_free(PORT):
        raise SystemExit(f"newcomer: port {PORT}, which README.md names, is taken: stop what listens there")
    with tempfile.TemporaryDirectory(prefix="newcomer-") as scratch_name:
        scratch = Path(scratch_name)
        app, home = scratch / "app", scratch / "home"
        home.mkdir()
        copy_checkout(app)
        first_minutes(app, home)
        if args.vision:
            with_vision(app, home)
    return 0


def first_minutes(app: Path, home: Path) -> None:
    began = time.monotonic()
    server = Terminal(app, home)
    server.paste("make serve")
    screen = server.wait("Ctrl-C here stops the server.", 900)
    installed = time.monotonic() - began
    check("Compiling" in screen and "Fetching" in screen, "the installation shows what it does", screen)
    size = mebibytes(app / ".venv")
    check(size < MAX_MIB, f".venv has {size} MiB, less than {MAX_MIB}")
    commands = welcome_commands(screen)
    check(len(commands) == 3, "the server prints a chat, a request and a program", screen)

    other = Terminal(home, home)
    for command in commands:
        if " chat " in command:
            chat(other, command)
            print(f"from nothing to the server {installed:.0f} s, to the first answer {time.monotonic() - began:.0f} s at most")
        else:
            shown = other.run(command)
            check("Paris" in shown.rpartition("EOF")[2], f"pasted from the server: {command.split()[0]}", shown)
    other.close()

    inside = Terminal(app, home)
    for command in readme_commands():
        if " chat " in command:
            chat(inside, command)
            continue
        shown = inside.run(command, 300)
        check("Traceback" not in shown and "rror:" not in shown, f"pasted from README.md: {command[:60]!r}", shown)
    inside.run("source .venv/bin/activate")
    shown = inside.run(f'sglang run "{QUESTION}"')
    check("Paris" in shown.partition("\n")[2], "sglang run, after source .venv/bin/activate", shown)
    inside.run("deactivate")
    inside.run(".venv/bin/python -c 'import requests, sglang'")
    inside.run(
        ".venv/bin/python -c 'import sglang_anywhere_kernels._cpu as k; assert k.usable_isas() == k.processor_isas()[:1]'"
    )
    shown = inside.run(".venv/bin/python -c 'import transformers' 2>&1 | tail -1")
    check("No module named" in shown, "requests are there, transformers are not")

    server.interrupt()
    screen = server.wait(PROMPT, 30)
    check("***" not in screen and "Error" not in screen, "Ctrl-C ends make serve without an error", screen)
    check(" 503 " not in screen, "no line of the log is about waiting")
    server.close()
    run_cells(inside, "text")
    inside.close()


def with_vision(app: Path, home: Path) -> None:
    server = Terminal(app, home)
    server.paste("make serve VISION=1")
    server.wait("Ctrl-C here stops the server.", 400)
    server.interrupt()
    server.wait(PROMPT, 30)
    print(f".venv with vision has {mebibytes(app / '.venv')} MiB", flush=True)
    run_cells(server, "images")
    server.close()


def run_cells(terminal: Terminal, which: str) -> None:
    """The cells of the documents in this environment, which has nothing of the tests."""
    if not SEEDS.is_dir():
        print(f"skipped: the cells of the documents ({which}): they are not here")
        return
    terminal.run(f".venv/bin/python -m tests.docs.run_cells {which} {SEEDS}", 300)
    check(True, f"the documents' cells run: {which}")


def mebibytes(folder: Path) -> int:
    used = subprocess.run(["du", "-sm", str(folder)], capture_output=True, text=True, check=True)
    return int(used.stdout.split()[0])


if __name__ == "__main__":
    raise SystemExit(main())
