"""`sglang serve`: serves a model over HTTP until Ctrl-C. `python -m sglang.launch_server` is the same without the welcome."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.commands.arguments import CommandError
from sglang.common.install import MissingPackage, needs_extra

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

WHAT_TO_TRY = """
{model} is ready. In a browser: {url}/   In another terminal:

{sglang} chat --url {url}

curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"messages": [{{"role": "user", "content": "What is the capital of France? Answer in one sentence."}}], "temperature": 0}}'

{python} - <<'EOF'
import sglang as sgl

@sgl.function
def qa(s, question):
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=64, temperature=0))

sgl.set_default_backend(sgl.RuntimeEndpoint("{url}"))
print(qa("What is the capital of France? Answer in one sentence.")["answer"])
EOF
{path}
Programs for OpenAI's API: base_url="{url}/v1", any api_key. Ctrl-C here stops the server.{cache}
"""

KEEP_CACHE = "\nWith --cache-dir DIR, prompts that were computed once need not be computed again after a restart."

ON_THE_PATH = "\nTo call these commands by their names: source {activate}\n"


def serve(argv: list[str], prog: str = "sglang serve", welcome: bool = True) -> int:
    """Serves until Ctrl-C. Returns the exit status; what went wrong is one line on standard error."""
    try:
        with needs_extra("srt"):
            from sglang.srt.server_args import parse_server_args
        rest, named = split_models(argv)
        args = parse_server_args(_with_model_flag(rest), prog)
    except (MissingPackage, CommandError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    return _status_of(lambda: _run(args, named, welcome and args.log_format == "text"), args, prog)


def _run(args: ServerArgs, named: dict[str, str], welcome: bool) -> None:
    if args.ray is not None:
        _serve_on_ray(args, named, welcome)
    elif named or args.models is not None:
        _serve_several(args, named, welcome)
    else:
        with needs_extra("srt"):
            from sglang.srt.process.start import launch_server
        launch_server(args, on_ready=(lambda: _print_welcome(args)) if welcome else None)


def split_models(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--model NAME=PATH` out of a command line, any number of them. A `--model` that is a file, or has no name, is left there: it
    is the only one. Raises CommandError."""
    rest: list[str] = []
    named: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--model":
            rest.append(word)
            continue
        text = value if equals else next(words, "")
        name, has_name, path = text.partition("=")
        if not has_name or not path or "/" in name.strip("/")[:1] or os.path.exists(text):
            rest += [word] if equals else [word, text]
            continue
        if name in named:
            raise CommandError(f"--model {name}=... is there twice: give one of them another name")
        named[name] = path
    return rest, named


def _serve_several(args: ServerArgs, named: dict[str, str], welcome: bool) -> None:
    with needs_extra("srt"):
        from sglang.cluster.model_list import list_models
        from sglang.cluster.serving import serve_models
    serve_models(args, list_models(args, named), on_ready=(lambda: _print_several(args)) if welcome else None)


def _serve_on_ray(args: ServerArgs, named: dict[str, str], welcome: bool) -> None:
    if named or args.models is not None:
        raise CommandError("--ray is for the replicas of one model: start one command for each model, with its own --port")
    with needs_extra("ray"):
        from sglang.cluster.ray.on_ray import serve_on_ray
    serve_on_ray(args, on_ready=(lambda: _print_welcome(args)) if welcome else None)


def _status_of(serve: Callable[[], None], args: ServerArgs, prog: str) -> int:
    """The exit status of a program that does nothing else. What went wrong is one line, in the format of the log."""
    from sglang.srt.errors import SglangError
    from sglang.srt.process.logs import configure_logging

    try:
        serve()
    except (SglangError, MissingPackage, CommandError) as error:
        if args.log_format == "json":
            configure_logging(args.log_level, args.log_level_http, args.log_format)
            logging.getLogger("sglang").critical("%s", error)
        else:
            print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _print_several(args: ServerArgs) -> None:
    where = f"--unix-socket {args.uds} http://localhost" if args.uds is not None else args.url()
    print(f"\nThe models are listed by\n\n  curl {where}/v1/models\n\nand chosen by `model` in a request.\n", flush=True)


def _with_model_flag(argv: list[str]) -> list[str]:
    """`sglang serve MODEL` means `sglang serve --model-path MODEL`."""
    return ["--model-path", *argv] if argv and not argv[0].startswith("-") else argv


def _print_welcome(args: ServerArgs) -> None:
    if args.uds is not None:
        print(
            f"{args.served_model_name or args.model_path} is ready:\n\n  curl --unix-socket {args.uds} http://localhost/v1/models\n"
        )
        return
    host = "localhost" if args.host in ("127.0.0.1", "0.0.0.0", "::", "") else args.host
    programs = {name: program(name) for name in ("sglang", "python")}
    scheme = "https" if args.ssl_certfile is not None else "http"
    url, model = f"{scheme}://{host}:{args.port}", args.served_model_name or args.model_path
    activate = Path(sys.prefix, "bin", "activate")
    path = ""
    if programs["sglang"] != "sglang" and activate.is_file():
        path = ON_THE_PATH.format(activate=shlex.quote(str(activate)))
    cache = KEEP_CACHE if args.cache_dir is None and args.device != "cuda" else ""
    print(WHAT_TO_TRY.format(model=model, url=url, path=path, cache=cache, **programs), flush=True)


def program(name: str) -> str:
    """How to start a program of this environment from any folder: by its name alone only where that is the one that is found."""
    path = os.path.abspath(Path(sys.executable).parent / name)
    found = shutil.which(name)
    return name if found is not None and os.path.abspath(found) == path else shlex.quote(path)
