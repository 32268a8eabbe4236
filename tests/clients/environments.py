"""Environments for programs of other people: packages of pip or npm at pinned versions, each client's apart from all others.

They are kept in the user's cache between runs and made anew when their packages change. What runs in one has its own home,
no keys, and reaches no host but the server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
CASES = Path(__file__).parent / "cases.py"
NOWHERE = "http://127.0.0.1:9"
"""a proxy that there is not: a program that asks other hosts fails at once"""
_SECRET = ("_API_KEY", "_TOKEN", "_SECRET")


@dataclass(frozen=True)
class Client:
    """`program`: a file in programs/, run as `program URL MODEL arguments`: Python in an environment with the packages `pip`, .mjs
    with node. `npm`: packages that it imports, or whose commands it runs (they are on its PATH). `asks`: what it does, for the
    reader. `script`: instead of the default model a server of scripted.py answers, by these (mark, answer). `flags`: the default
    model in its own server, with these."""

    program: str
    asks: str
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    script: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()
    timeout: float = 600.0

    @property
    def name(self) -> str:
        return " ".join((self.program, *self.arguments))


def run_client(client: Client, url: str, model: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs it in `folder`, which is empty; what it starts ends with it. Raises TimeoutExpired."""
    shutil.copy(PROGRAMS / client.program, folder)  # node looks for packages beside the file that imports them
    shutil.copy(CASES, folder)  # programs in Python import it
    environment = _environment_of(folder)
    if client.npm:
        (folder / "node_modules").symlink_to(node_modules(client.program, client.npm))
        environment["PATH"] = f"{folder / 'node_modules' / '.bin'}{os.pathsep}{environment['PATH']}"
    runs = "node" if client.program.endswith(".mjs") else str(interpreter(client.program, client.pip))
    command = [runs, client.program, url, model, *client.arguments]
    return _run(command, folder, environment, client.timeout)


def _environment_of(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.endswith(_SECRET)}
    home = folder / "home"
    home.mkdir()
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "None", "DO_NOT_TRACK": "1"}
    own = {
        "PWD": str(folder),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_CACHE_HOME": str(home / ".cache"),
    }
    data = {"XDG_DATA_HOME": str(home / ".local" / "share"), "XDG_STATE_HOME": str(home / ".local" / "state")}
    return kept | proxies | direct | offline | own | data


def _run(command: list[str], folder: Path, environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=folder, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglang-anywhere" / "test-clients"


def interpreter(name: str, packages: tuple[str, ...]) -> Path:
    """Python of the environment with the packages; it is made if need be."""
    cache = cache_folder() / name.removesuffix(".py")
    python, done = cache / "bin" / "python", cache / "installed"
    if not _has(done, packages):
        venv.create(cache, with_pip=True, clear=True)
        if packages:
            options = ["--quiet", "--disable-pip-version-check"]
            subprocess.run([str(python), "-m", "pip", "install", *options, *packages], check=True)
        done.write_text(" ".join(packages))
    return python


def node_modules(name: str, packages: tuple[str, ...]) -> Path:
    """The folder of packages with what they need; it is made if need be."""
    cache = cache_folder() / f"{Path(name).stem}-npm"
    done = cache / "installed"
    if not _has(done, packages):
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        (cache / "package.json").write_text('{"private": true}')
        options = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
        subprocess.run(["npm", "install", *options, *packages], cwd=cache, env=os.environ | {"HOME": str(cache)}, check=True)
        done.write_text(" ".join(packages))
    return cache / "node_modules"


def _has(done: Path, packages: tuple[str, ...]) -> bool:
    return done.exists() and done.read_text() == " ".join(packages)
