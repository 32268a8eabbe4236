"""The `sglang` command: a table of commands. Each is a file in commands/, imported when it is called."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib import import_module

from sglang.common.suggest import nearest

USAGE = """usage: sglang COMMAND ...

commands:
  serve           serve a model over HTTP
  chat            talk to a model in the terminal
  run             one prompt, one answer
  batch           a file of requests, a file of answers
  top             what a server is doing
  bench serve     load a server and measure it
  bench offline   measure the engine in this process
  models          the models known by a short name
  pull            download a model
  list            the models on this machine
  rm              delete downloaded models
  cache           show or delete prefixes kept on disk
  trace view      render a recorded run of a program as an HTML page

sglang COMMAND --help lists the options; sglang --version prints the version.
"""

COMMANDS = {
    "serve": "sglang.commands.serve:serve",
    "chat": "sglang.commands.chat:chat",
    "run": "sglang.commands.run:run",
    "batch": "sglang.commands.batch:batch",
    "top": "sglang.commands.top:top",
    "bench": "sglang.commands.bench:bench",
    "models": "sglang.commands.downloads:models",
    "pull": "sglang.commands.downloads:pull",
    "list": "sglang.commands.downloads:list_models",
    "rm": "sglang.commands.downloads:remove",
    "cache": "sglang.commands.downloads:cache",
    "trace": "sglang.lang.record.viewer:main",
}
"""name -> module:function; the function takes the rest of the command line and returns the exit status"""


def main() -> int:
    """Entry point of the `sglang` command. What went wrong is one line on standard error."""
    for stream in (sys.stdin, sys.stdout):  # of a terminal that has not all characters, or other ones
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            return _main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # `sglang ... | head`
        with contextlib.suppress(OSError):  # what is still to be written goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _main() -> int:
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if name in ("-V", "--version", "version"):
        from sglang import __version__

        print(f"sglang-anywhere {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"sglang: error: unknown command {name!r}; {_hint(name)}", file=sys.stderr)
        return 2
    return _call(COMMANDS[name], name, rest)


def _hint(name: str) -> str:
    close = nearest(name, COMMANDS)
    return "see sglang --help" if close is None else f"did you mean {close!r}?"


def _call(target: str, name: str, rest: list[str]) -> int:
    from sglang.commands.arguments import CommandError
    from sglang.common.install import MissingPackage

    module, _, function = target.partition(":")
    try:
        return int(getattr(import_module(module), function)(rest))
    except (CommandError, MissingPackage) as error:
        print(f"sglang {name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
