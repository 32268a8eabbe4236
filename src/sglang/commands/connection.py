"""The server that a command uses: a running one, or one that is started for the session.

A session's server runs in its own process, so that Ctrl-C can stop an answer without stopping the model. It exits when its
standard input closes, which happens however this process ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from sglang.commands.address import Address
from sglang.commands.arguments import CommandError
from sglang.common.install import needs_extra
from sglang.common.server_process import end_process, free_port, wait_until
from sglang.common.sse import EventReader
from sglang.utils import PORTS

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

START_SECONDS = 1800.0
"""a first start may download a model"""


class Connection:
    """Requests to one server. Raises CommandError with the server's own sentence when it refuses."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.url = address.socket_path or address.base_url
        timeout = httpx.Timeout(10.0, read=None)
        try:
            self._client = httpx.Client(
                base_url=address.base_url, headers=address.headers, timeout=timeout, transport=address.transport()
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise CommandError(f"{address.url!r} is not the address of a server: {error}") from error

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> dict[str, Any] | None:
        """The JSON object at `path`; None where the server has no such page."""
        try:
            reply = self._client.get(path)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if reply.status_code == 404:
            return None
        if reply.status_code != 200:
            raise CommandError(_message(reply))
        value = _parsed(reply.text)
        return value if isinstance(value, dict) else None

    def model_name(self) -> str:
        """The model served."""
        models = self.get("/v1/models") or {}
        names = [card["id"] for card in models.get("data", []) if isinstance(card, dict) and "id" in card]
        if not names:
            raise CommandError(f"{self.url} does not answer like an OpenAI-compatible server")
        return str(names[0])

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The events of a streamed answer. Leaving the loop early hangs up, which stops the answer."""
        try:
            content = json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # bytes of a command line
            raise CommandError(f"{error.object[max(error.start - 20, 0) : error.end]!r} is not UTF-8") from error
        try:
            headers = {"Content-Type": "application/json"}
            with self._client.stream("POST", path, content=content, headers=headers) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise CommandError(_message(reply))
                yield from _parse_events(reply.iter_bytes())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> CommandError:
        hint = ""
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "; --ca-file FILE names the authority that signed its certificate"
        elif isinstance(error, httpx.ConnectError):
            hint = "; is it running? `sglang serve` starts one, --url names another"
        return CommandError(f"cannot reach the server at {self.url}: {error or type(error).__name__}{hint}")


def _parse_events(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    stream = EventReader()
    for data in (data for chunk in chunks for data in stream.feed(chunk)):
        if data.strip() == "[DONE]":
            return
        event = _parsed(data)
        if not isinstance(event, dict):
            raise CommandError(f"the server sent something that is not JSON: {data[:200]!r}")
        if event.get("error"):
            raise CommandError(_error_text(event["error"]))
        yield event


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _message(reply: httpx.Response) -> str:
    """The sentence in an error's body, whatever its shape."""
    body = _parsed(reply.text)
    error = body.get("error", body.get("message", body)) if isinstance(body, dict) else body
    return _error_text(error) if error else f"the server answered with status {reply.status_code}"


def _error_text(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


@contextlib.contextmanager
def connect(args: argparse.Namespace, model: str | None, serve_flags: list[str], prog: str) -> Iterator[Connection]:
    """The server that the flags mean. `serve_flags` are for a server of the session."""
    if args.url is None:
        with _session_server(model, serve_flags, prog) as url:
            connection = Connection(Address(url))
            try:
                yield connection
            finally:
                connection.close()
        return
    if model is not None or serve_flags:
        what = f"the model {model!r}" if model is not None else serve_flags[0]
        raise CommandError(f"{what} cannot be combined with --url: that server is already running")
    connection = Connection(Address(args.url, args.api_key, args.ca_file))
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def _session_server(model: str | None, serve_flags: list[str], prog: str) -> Iterator[str]:
    """Starts a server; its address."""
    with needs_extra("srt"):
        from sglang.srt.server_args import parse_server_args
    flags = [*(["--model-path", model] if model is not None else []), *serve_flags]
    args = parse_server_args(flags, prog)  # a bad flag ends the program here, with one line
    _check_reachable(args, serve_flags)
    name = args.model_path
    port = free_port("127.0.0.1", random.sample(PORTS, 200))
    command = [sys.executable, "-m", "sglang.launch_server", "--stop-with-stdin", *flags, "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="sglang-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            # a session of its own: Ctrl-C in this terminal is for the answer, not for the server
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True, env=_plain_environment()
            )
        try:
            _wait_until_ready(process, log, name)
            yield f"http://127.0.0.1:{port}"
        finally:
            assert process.stdin is not None
            process.stdin.close()
            end_process(process, grace=10.0)


ELSEWHERE = ("uds", "ssl_certfile", "ssl_keyfile", "api_key", "api_key_file", "log_format")
"""flags with which a server of the session could not be spoken to, or its log not be read"""


def _check_reachable(args: ServerArgs, serve_flags: list[str]) -> None:
    given = [name for name in ELSEWHERE if serve_flags and getattr(args, name) not in (None, "text")]
    given = [name for name in given if f"SGLANG_{name.upper()}" not in os.environ]
    if given:
        raise CommandError(
            f"--{given[0].replace('_', '-')} is for servers that others use: start one with sglang serve, and give its --url here"
        )


def _plain_environment() -> dict[str, str]:
    """Without the variables that say how other servers are spoken to."""
    away = {f"SGLANG_{name.upper()}" for name in (*ELSEWHERE, "host", "root_path", "admin_api_key", "admin_api_key_file")}
    return {name: value for name, value in os.environ.items() if name not in away}


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, name: str) -> None:
    """Shows how long it takes and what is being done. Raises CommandError with the server's last word if it ends."""
    began = time.monotonic()
    shown = sys.stderr.isatty()

    def ready() -> bool:
        text = log.read_text(errors="replace")
        _progress(shown, f"Starting {name} ... {time.monotonic() - began:.0f} s  {_doing(text)}")
        return "ready to roll" in text

    try:
        wait_until(ready, process, START_SECONDS, f"server for {name}")
    except RuntimeError as error:
        raise CommandError(_last_error(log.read_text(errors="replace")) or str(error)) from error
    except TimeoutError as error:
        raise CommandError(str(error)) from error
    finally:
        _progress(shown, "")


def _progress(shown: bool, text: str) -> None:
    if shown:
        width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        print(f"\r\x1b[K{text[: width - 1]}", end="", file=sys.stderr, flush=True)


def _doing(log: str) -> str:
    lines = [line for line in log.replace("\r", "\n").splitlines() if line.strip()]
    if any("KV Cache is allocated" in line for line in lines):
        return "(warming up)"
    if loading := [line for line in lines if "Load weight" in line]:
        how_far = loading[-1].partition("Load weight: ")[2]
        return f"(loading weights: {how_far})" if how_far else "(loading weights)"
    last = next((line for line in reversed(lines) if "Fetching" in line or "%" in line or "MB" in line), "")
    return f"({last.strip()})" if last and "server_args" not in last else ""


def _last_error(log: str) -> str | None:
    errors = [line for line in log.splitlines() if "error:" in line]
    return errors[-1].split("error:", 1)[1].strip() if errors else None
