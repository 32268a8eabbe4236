"""`sglang top`: what a server, or several models behind one port, are doing, from /metrics.

    model   run  wait   KV  hit  tok/s  first token  requests
    alpha     3     0  12%  71%    214       0.08 s       120

Tokens a second and the time to the first token are those between two looks; at the first look they are the server's own. Where the
output is no terminal, the table is printed once.
"""

from __future__ import annotations

import re
import sys
import time

import httpx

from sglang.commands.address import Address
from sglang.commands.arguments import CommandError, Parser

PROG = "sglang top"
DEFAULT_URL = "http://localhost:30000"
HOME = "\x1b[H\x1b[J"
MAX_MODELS, MAX_NAME = 1000, 40
COLUMNS = ("run", "wait", "KV", "hit", "tok/s", "first token", "requests")
_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)\{(?P<labels>.*)\} (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Look = dict[str, dict[str, float]]
"""model, with its replica if it has several -> metric, without its prefix -> value"""


def top(argv: list[str]) -> int:
    """The command."""
    parser = Parser(
        PROG, "What a server is doing: requests, queue, memory, hits of the prefix cache, tokens a second, by model."
    )
    parser.add_argument(
        "--url", default=DEFAULT_URL, help=f"the server: http://HOST:PORT or unix:PATH (default: {DEFAULT_URL})"
    )
    parser.add_argument("--api-key", metavar="KEY", help="key of that server (default: SGLANG_API_KEY)")
    parser.add_argument("--ca-file", metavar="FILE", help="authority of its certificate (PEM; default: the system's)")
    parser.add_argument("--once", action="store_true", help="print the table once")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between two looks (default: 2)")
    parser.end_with("", "--url http://gpu1:30000 --once", starts_server=False)
    args = parser.parse_args(argv)
    if not 0.1 <= args.interval <= 3600:
        parser.error(f"--interval must be between 0.1 and 3600, got {args.interval}")
    address = Address(args.url, args.api_key, args.ca_file)
    try:
        client = httpx.Client(base_url=address.base_url, headers=address.headers, timeout=30.0, transport=address.transport())
    except (httpx.InvalidURL, ValueError) as error:
        raise CommandError(f"{args.url!r} is not the address of a server: {error}") from error
    with client:
        if args.once or not sys.stdout.isatty():
            print(table(look(client, args.url), {}, 0.0))
            return 0
        return _watch(client, args.url, args.interval)


def _watch(client: httpx.Client, url: str, interval: float) -> int:
    before: Look = {}
    began = time.monotonic()
    while True:
        now, at = look(client, url), time.monotonic()
        print(f"{HOME}{url}   every {interval:g} s, Ctrl-C ends\n\n{table(now, before, at - began)}", flush=True)
        before, began = now, at
        time.sleep(interval)


def look(client: httpx.Client, url: str) -> Look:
    """What the metrics say now. Raises CommandError."""
    try:
        reply = client.get("/metrics")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise CommandError(f"no server answers at {url}: {str(error) or type(error).__name__}") from error
    if reply.status_code == 404:
        raise CommandError(f"the server at {url} has no metrics: start it with --enable-metrics")
    if reply.status_code != 200:
        raise CommandError(f"the server at {url} answers {reply.status_code} to /metrics")
    return parse_metrics(reply.text)


def parse_metrics(text: str) -> Look:
    """The samples of this program's metrics, of each model, and each replica of it; added up over other labels."""
    found: Look = {}
    for line in text.split("\n"):
        sample = _SAMPLE.fullmatch(line)
        if sample is None or not sample["name"].startswith("sglang:"):
            continue
        labels = dict(_LABEL.findall(sample["labels"]))
        model = labels.get("model_name")
        if model is not None and "replica" in labels:
            model = f"{model} {labels['replica'][:8]}"
        if model is None or "le" in labels or (model not in found and len(found) == MAX_MODELS):
            continue
        try:
            value = float(sample["value"])
        except ValueError:
            continue
        metrics, name = found.setdefault(model, {}), sample["name"].removeprefix("sglang:")
        metrics[name] = metrics.get(name, 0.0) + value
    return found


def table(now: Look, before: Look, seconds: float) -> str:
    """A line for each model. `before`: what was seen so many `seconds` ago; empty at the first look."""
    lines: list[tuple[str, ...]] = [("model", *COLUMNS)]
    lines += [(_shown(model), *_cells(now[model], before.get(model, {}), seconds)) for model in sorted(now)]
    if not now:
        return "the server tells of no model"
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]).rstrip()
        for name, *cells in lines
    )


def _cells(now: dict[str, float], before: dict[str, float], seconds: float) -> tuple[str, ...]:
    if "num_running_reqs" not in now:  # a model that is not in memory
        return ("-",) * len(COLUMNS)
    count = _since(now, before, "time_to_first_token_seconds_count")
    waited = _since(now, before, "time_to_first_token_seconds_sum")
    made = _since(now, before, "generation_tokens_total")
    rate = max(made / seconds, now.get("gen_throughput", 0.0)) if before and seconds > 0 else now.get("gen_throughput", 0.0)
    waiting = now.get("num_queue_reqs", 0.0) + now.get("num_grammar_queue_reqs", 0.0)
    return (
        f"{now['num_running_reqs']:.0f}",
        f"{waiting:.0f}",
        f"{now.get('token_usage', 0.0):.0%}",
        f"{now.get('cache_hit_rate', 0.0):.0%}",
        f"{rate:.0f}",
        f"{waited / count:.2f} s" if count > 0 else "-",
        f"{now.get('num_requests_total', 0.0):.0f}",
    )


def _since(now: dict[str, float], before: dict[str, float], name: str) -> float:
    """A counter's growth; a server that was started anew counts from the beginning."""
    growth = now.get(name, 0.0) - before.get(name, 0.0)
    return growth if growth >= 0 else now.get(name, 0.0)


def _shown(model: str) -> str:
    """A name as a terminal may show it."""
    text = "".join(c if c.isprintable() else "?" for c in model)
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}…"
