"""`sglang chat`: a conversation with a model in the terminal.

loop      read a message or a /command; a table of commands, one method each
reply     stream the answer; Ctrl-C stops the answer, not the program
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang.commands.arguments import CommandError, Parser, add_server_choice
from sglang.commands.connection import Connection, connect
from sglang.commands.media import media_part

PROG = "sglang chat"
MAX_TOKENS = 512
"""of an answer, unless another number is set"""
SHORTEST_SPAN = 0.002
"""seconds between the first and the last piece of an answer from which on a rate is shown"""

HELP = """\
/system TEXT      the system message; without TEXT, shows it; /system off removes it
/image PATH|URL   attaches an image to the next message (vision-language models); /image off removes them
/json SCHEMA      answers follow a JSON schema, text or file; /json: any object; /json off: unconstrained
/set NAME VALUE   a parameter of the requests, such as temperature 0.2 or max_tokens 300; without VALUE, unset
/retry            another answer to the last message
/undo             removes the last message and its answer
/history          the conversation so far
/save FILE        writes it as JSON
/reset            forgets the conversation
/exit             leaves; so does Ctrl-D

Several lines: end a line with \\, or begin and end with \"\"\". Ctrl-C stops an answer.
"""


@dataclass
class Settings:
    """Fields of every request besides the messages."""

    system: str | None = None
    response_format: dict[str, Any] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


class Chat:
    """One conversation. `read` gives the next line for a prompt and raises EOFError at the end; `write` shows text."""

    def __init__(
        self, connection: Connection, model: str, settings: Settings, read: Callable[[str], str], write: Callable[[str], None]
    ) -> None:
        self._connection = connection
        self._model = model
        self._settings = settings
        self._read = read
        self._write = write
        self._messages: list[dict[str, Any]] = []
        self._parts: list[dict[str, Any]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda rest: self._write(HELP),
            "system": self._system,
            "image": self._image,
            "json": self._json,
            "set": self._set,
            "retry": lambda rest: self._retry(),
            "undo": lambda rest: self._undo(),
            "history": lambda rest: self._history(),
            "save": self._save,
            "reset": lambda rest: self._reset(),
        }

    def loop(self) -> None:
        """Until /exit, the end of the input, or Ctrl-C twice in a row where nothing is being answered."""
        interrupted = False
        while True:
            try:
                text = self._read_message()
            except EOFError:
                self._write("\n" if sys.stdin.isatty() else "")
                return
            except KeyboardInterrupt:
                self._write("\n" if interrupted else "\n(Ctrl-C again, Ctrl-D or /exit leaves)\n")
                if interrupted:
                    return
                interrupted = True
                continue
            interrupted = False
            if text.strip() in ("/exit", "/quit", "/bye"):
                return
            try:
                self._take(text)
            except CommandError as error:
                self._write(f"error: {error}\n")

    def _read_message(self) -> str:
        line = self._read("> ")
        if line.lstrip().startswith('"""'):
            return self._read_block(line.lstrip()[3:])
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._read(". "))
        return "\n".join(lines)

    def _read_block(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(self._read(". "))
        lines[-1] = lines[-1].rstrip()[:-3]
        return "\n".join(lines).strip("\n")

    def _take(self, text: str) -> None:
        stripped = text.strip()
        if stripped.startswith("/"):
            name, _, rest = stripped[1:].partition(" ")
            command = self._commands.get(name)
            if command is None:
                raise CommandError(f"there is no /{name}; /help shows what there is")
            command(rest.strip())
        elif stripped or self._parts:
            self._ask(text)

    def _ask(self, text: str) -> None:
        content: Any = [*self._parts, {"type": "text", "text": text}] if self._parts else text
        self._messages.append({"role": "user", "content": content})
        try:
            answer = self._reply()
        except CommandError as error:
            self._messages.pop()
            kept = f"\n({len(self._parts)} image(s) still go with the next message; /image off takes them back)"
            raise CommandError(f"{error}{kept if self._parts else ''}") from error
        self._parts = []
        self._messages.append({"role": "assistant", "content": answer})

    def _reply(self) -> str:
        """Streams an answer and shows it. What has come when Ctrl-C is pressed is the answer."""
        answer = StreamedAnswer(self._write)
        events = self._connection.events("/v1/chat/completions", self._body())
        with contextlib.closing(events):
            try:
                for event in events:
                    answer.take(event)
            except KeyboardInterrupt:
                answer.note = "stopped"
        self._write(f"\n{dim(answer.summary())}\n\n")
        return answer.text

    def _body(self) -> dict[str, Any]:
        system = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
        body = {
            **self._settings.parameters,
            "model": self._model,
            "messages": [*system, *self._messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._settings.response_format is not None:
            body["response_format"] = self._settings.response_format
        return body

    # --- commands -----------------------------------------------------------------------------------------------------------

    def _system(self, rest: str) -> None:
        if rest:
            self._settings.system = None if rest == "off" else rest
        self._write(f"system: {self._settings.system or '(none)'}\n")

    def _image(self, rest: str) -> None:
        if not rest:
            raise CommandError("/image needs a file or a URL")
        if rest == "off":
            self._parts.clear()
            self._write("no images go with the next message\n")
            return
        info = self._connection.get("/get_model_info")
        if info is not None and not info.get("has_image_understanding", True):
            raise CommandError(f"{self._model} does not take images; serve a vision-language model")
        self._parts.append(media_part(rest))
        self._write(f"{len(self._parts)} image(s) go with the next message\n")

    def _json(self, rest: str) -> None:
        self._settings.response_format = response_format(rest)
        self._write("answers are unconstrained\n" if rest == "off" else "answers are JSON\n")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not name:
            self._write(f"{json.dumps(self._settings.parameters)}\n")
        elif not value:
            self._settings.parameters.pop(name, None)
        else:
            self._settings.parameters[name] = parse_value(value)

    def _retry(self) -> None:
        if len(self._messages) < 2:
            raise CommandError("there is nothing to try again")
        old = self._messages.pop()
        try:
            answer = self._reply()
        except CommandError:
            self._messages.append(old)
            raise
        self._messages.append({"role": "assistant", "content": answer})

    def _undo(self) -> None:
        del self._messages[-2:]

    def _history(self) -> None:
        for message in self._messages:
            self._write(f"{message['role']}: {shown(message['content'])}\n")

    def _save(self, rest: str) -> None:
        if not rest:
            raise CommandError("/save needs a file name")
        text = json.dumps(self._messages, indent=2, ensure_ascii=False) + "\n"
        try:
            Path(rest).expanduser().write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise CommandError(f"cannot write {rest}: {error.strerror or error}") from error

    def _reset(self) -> None:
        self._messages.clear()
        self._parts.clear()
        self._write("forgotten\n")


class StreamedAnswer:
    """Shows the pieces of an answer as they come, and counts."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.text = ""
        self.note: str | None = None
        self._write = write
        self._began = time.monotonic()
        self._first = 0.0
        self._last = self._began
        self._pieces = 0
        self._tokens: int | None = None
        self._thinking = False

    def take(self, event: dict[str, Any]) -> None:
        """One chunk of a chat completion."""
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._tokens = usage.get("completion_tokens")
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            self._show(delta.get("reasoning_content") or "", thinking=True)
            self._show(delta.get("content") or "", thinking=False)
            if choice.get("finish_reason") == "length":
                self.note = "cut at the token limit; /set max_tokens N sets another"

    def _show(self, piece: str, thinking: bool) -> None:
        if not piece:
            return
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._pieces += 1
        if self._thinking and not thinking:
            self._write("\n\n")
        self._thinking = thinking
        if not thinking:
            self.text += piece
        visible = printable(piece)
        self._write(dim(visible) if thinking else visible)

    def summary(self) -> str:
        """Such as `[12 tokens, 85.3 tokens/s, first after 0.04 s]`."""
        if not self._pieces:
            return f"[nothing{', ' + self.note if self.note else ''}]"
        count = self._tokens if self._tokens is not None else self._pieces
        parts = [f"{count} tokens"]
        if count > 1 and self._last - self._first > SHORTEST_SPAN:
            parts.append(f"{(count - 1) / (self._last - self._first):.1f} tokens/s")
        parts.append(f"first after {self._first - self._began:.2f} s")
        return f"[{', '.join([*parts, self.note] if self.note else parts)}]"


def response_format(text: str) -> dict[str, Any] | None:
    """OpenAI's response_format for a schema, the name of a file that holds one, "" (any object) or "off"."""
    if text == "off":
        return None
    if not text:
        return {"type": "json_object"}
    source = text
    if not text.lstrip().startswith("{"):
        try:
            source = Path(text).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            raise CommandError(f"{text!r} is neither a JSON schema nor a file that can be read") from error
    try:
        schema = json.loads(source)
    except ValueError as error:
        raise CommandError(f"the schema is not valid JSON: {error}") from error
    if not isinstance(schema, dict):
        raise CommandError("the schema must be a JSON object")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def parse_value(text: str) -> Any:
    """JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def shown(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] if part["type"] == "text" else f"({part['type']})" for part in content)


def printable(text: str) -> str:
    """Removes control characters: a model must not control the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text


def _reader() -> Callable[[str], str]:
    """`input` with editing and history at a terminal; plain lines from a pipe."""
    if not sys.stdin.isatty():
        return lambda prompt: input()
    with contextlib.suppress(ImportError):  # not part of every build of Python
        import readline

        readline.set_history_length(1000)
    return input


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(PROG, "Talk to a model in the terminal.\n\n" + HELP)
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="alias, folder, .gguf file or hub id; default: the default model"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message; default: the model's for the terminal, if it has one")
    parser.add_argument("--json", metavar="SCHEMA", help="answers follow this JSON schema (text or file)")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help=f"longest answer (default: {MAX_TOKENS})"
    )
    add_server_choice(parser)
    parser.end_with(
        "",
        "./model.gguf --system 'Answer in one sentence.'",
        "--url https://llm.example.com --ca-file ca.pem",
        "--url unix:/run/sglang/sglang.sock",
    )
    return parser.parse_split(argv)


def chat(argv: list[str]) -> int:
    """The command."""
    args, serve_flags = _parse(argv)
    parameters = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    settings = Settings(args.system, None, {k: v for k, v in parameters.items() if v is not None})
    if args.json is not None:
        settings.response_format = response_format(args.json)
    with connect(args, args.model, serve_flags, PROG) as connection:
        name = connection.model_name()
        info = connection.get("/get_model_info")
        if info is not None and not info.get("has_chat_template", True):
            raise CommandError(f"{name} has no chat template: it continues texts; try sglang run, or --chat-template")
        if settings.system is None:
            settings.system = (info or {}).get("suggested_system_prompt")
        if sys.stdin.isatty():
            print(f"{name} is ready. /help shows what you can type; Ctrl-D leaves.")
            if settings.system is not None:
                print(dim(f"system: {settings.system} (/system changes it)"))
        Chat(connection, name, settings, _reader(), _write).loop()
    return 0
