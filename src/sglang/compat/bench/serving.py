"""python -m sglang.bench_serving: a running server under load, as its clients see it."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx
from tqdm import tqdm

from sglang.commands.address import Address
from sglang.commands.arguments import CommandError
from sglang.commands.load import send_all
from sglang.commands.report import Outcome
from sglang.compat.bench.datasets import Row, add_dataset_args, load_rows
from sglang.compat.bench.rules import append_line, latencies, latency_lines, rates, row, title

NATIVE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
BACKENDS = {
    "sglang": NATIVE,
    "sglang-native": NATIVE,
    "sglang-oai": COMPLETIONS,
    "sglang-oai-chat": CHAT,
    "vllm": COMPLETIONS,
    "vllm-chat": CHAT,
    "lmdeploy": COMPLETIONS,
    "lmdeploy-chat": CHAT,
}
"""--backend -> the path that is asked"""
_PORTS = {"sglang": 30000, "vllm": 8000, "lmdeploy": 23333}
_REFUSED = {
    "pd_separated": "a server does both, prefill and decode",
    "lora_name": "adapters are not served",
    "use_trace_timestamps": "no data set with times is here",
}
_NO_EFFECT = "tokenizer served_model_name tokenize_prompt plot_throughput ready_check_timeout_sec"
"""the server tokenizes, and the port must answer"""


def create_parser() -> argparse.ArgumentParser:
    """The original's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m sglang.bench_serving", description="Load a running server and measure what its clients see."
    )
    parser.add_argument("--backend", default="sglang", choices=list(BACKENDS))
    parser.add_argument("--base-url", help="instead of --host and --port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the backend's own")
    parser.add_argument("--model", help="name of the model in requests; default: the one that the server lists")
    add_dataset_args(parser)
    load = parser.add_argument_group("load")
    load.add_argument("--request-rate", type=float, default=math.inf, help="requests a second (Poisson); inf: all at once")
    load.add_argument("--max-concurrency", type=int, help="never more than so many at once")
    load.add_argument("--warmup-requests", type=int, default=1)
    load.add_argument("--flush-cache", action="store_true", help="empty the prefix cache before the measurement")
    load.add_argument("--profile", action="store_true", help="let the server profile meanwhile")
    ask = parser.add_argument_group("requests")
    ask.add_argument("--disable-stream", action="store_true")
    ask.add_argument("--disable-ignore-eos", action="store_true", help="answers may end early")
    ask.add_argument("--return-logprob", action="store_true")
    ask.add_argument("--top-logprobs-num", type=int, default=0)
    ask.add_argument("--extra-request-body", default="{}", help="JSON that is added to each body")
    ask.add_argument("--apply-chat-template", action="store_true", help="texts as the user's turn (with a chat backend)")
    ask.add_argument("--header", nargs="*", default=[], help="KEY=VALUE of each request")
    out = parser.add_argument_group("output")
    out.add_argument("--output-file", help="a line of JSON is added; default: named after backend, day and data set")
    out.add_argument("--output-details", action="store_true", help="with times of each request")
    out.add_argument("--tag", help="a word that is written with the result")
    out.add_argument("--disable-tqdm", action="store_true")
    out.add_argument("--print-requests", action="store_true")
    for name in (*_REFUSED, *_NO_EFFECT.split()):
        parser.add_argument("--" + name.replace("_", "-"), nargs="?", const=True, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. The exit status is 1 if a request failed."""
    args = create_parser().parse_args(argv)
    try:
        result = run_benchmark(args)
    except CommandError as error:
        print(f"python -m sglang.bench_serving: error: {error}", file=sys.stderr)
        return 1
    return 0 if result["completed"] == result["num_prompts"] else 1


def with_defaults(given: argparse.Namespace) -> argparse.Namespace:
    """`given`, a command line or what a program made up, with what it leaves open. Raises CommandError for what is not possible."""
    args = create_parser().parse_args([])
    for name, value in vars(given).items():
        setattr(args, name, value)
    for name, why in _REFUSED.items():
        if getattr(args, name, None):
            raise CommandError(f"--{name.replace('_', '-')} is not possible here: {why}")
    if args.backend not in BACKENDS:
        raise CommandError(f"--backend {args.backend} is not known; there are {', '.join(BACKENDS)}")
    if not args.request_rate > 0 or (args.max_concurrency is not None and args.max_concurrency < 1) or args.num_prompts < 1:
        raise CommandError("--request-rate, --max-concurrency and --num-prompts must be positive")
    return args


def run_benchmark(args_: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table, adds a line to the result file; returns what the line holds. Raises CommandError."""
    args = with_defaults(args_)
    print(args)
    with _Server(args) as server:
        rows = load_rows(args, server.encode, server.vocab_size())
        args.model = args.model or server.model()
        asked = _requests(args, rows)
        if args.print_requests:
            print(*(json.dumps(body) for _, body in asked), sep="\n")
        _warm_up(args, server, asked)
        server.around_measurement(begin=True)
        outcomes, seconds = _run(args, server, asked)
        server.around_measurement(begin=False)
    result = _result(args, outcomes, seconds)
    print("\n".join(_table(args, result)))
    for error in sorted({o.error for o in outcomes if o.error is not None}):
        print(f"error: {error}")
    append_line(args.output_file or _file_name(args), result)
    return result


def _file_name(args: argparse.Namespace) -> str:
    return f"{args.backend}_{datetime.now():%m%d}_{args.num_prompts}_{args.dataset_name}.jsonl"


# --- the server -------------------------------------------------------------------------------------------------------------


class _Server:
    """The server that is measured, for what is asked besides."""

    def __init__(self, args: argparse.Namespace) -> None:
        port = args.port or _PORTS[args.backend.split("-")[0]]
        host = args.host if "://" in args.host else f"http://{args.host}"
        self.url = (args.base_url or f"{host}:{port}").rstrip("/").removesuffix("/v1")
        self.headers = _headers(args.header)
        self._args = args
        self._client = httpx.Client(base_url=self.url, headers=self.headers, timeout=60.0, trust_env=False)

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def _ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            return self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise CommandError(f"no server answers at {self.url}: {error}") from error

    def model(self) -> str:
        reply = self._ask("GET", "/v1/models")
        if reply.status_code != 200:
            raise CommandError(f"{self.url} lists no model ({reply.status_code}): give --model")
        return str(reply.json()["data"][0]["id"])

    def vocab_size(self) -> int:
        """The model's vocabulary size; where the server does not report it, a size that every model has."""
        reply = self._ask("GET", "/get_server_info")
        info = reply.json() if reply.status_code == 200 else {}
        return int((info.get("model") or {}).get("vocab_size") or 30_000)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts; where the server tells none, a list as long as they are likely to be."""
        reply = self._ask("POST", "/tokenize", {"prompt": list(texts), "add_special_tokens": False})
        if reply.status_code != 200:
            return [[0] * math.ceil(len(text) / 4) for text in texts]
        ids: list[list[int]] = reply.json()["tokens"]
        return ids

    def around_measurement(self, begin: bool) -> None:
        """Flushes the cache before and profiles during a measurement, if asked to."""
        if begin and self._args.flush_cache:
            self._ask("POST", "/flush_cache")
        if self._args.profile:
            reply = self._ask("POST", "/start_profile" if begin else "/stop_profile")
            print(f"profile: {reply.text.strip()}")


def _headers(pairs: Sequence[str]) -> dict[str, str]:
    import os

    headers = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers.setdefault("Authorization", f"Bearer {key}")
    return headers


# --- requests ---------------------------------------------------------------------------------------------------------------


def _requests(args: argparse.Namespace, rows: Sequence[Row]) -> list[tuple[str, dict[str, Any]]]:
    """(path, body) of each."""
    path = BACKENDS[args.backend]
    try:
        extra = json.loads(args.extra_request_body or "{}")
    except ValueError as error:
        raise CommandError(f"--extra-request-body is not valid JSON: {error}") from error
    return [(path, _body(args, path, one, dict(extra))) for one in rows]


def _body(args: argparse.Namespace, path: str, one: Row, extra: dict[str, Any]) -> dict[str, Any]:
    return _native_body(args, one, extra) if path == NATIVE else _openai_body(args, path, one) | extra


def _native_body(args: argparse.Namespace, one: Row, extra: dict[str, Any]) -> dict[str, Any]:
    params = {"temperature": 0, "max_new_tokens": one.output_len, "ignore_eos": not args.disable_ignore_eos}
    body: dict[str, Any] = {
        "text" if isinstance(one.prompt, str) else "input_ids": one.prompt,
        "stream": not args.disable_stream,
    }
    if args.return_logprob:
        body |= {"return_logprob": True, "top_logprobs_num": args.top_logprobs_num}
    return body | extra | {"sampling_params": params | extra.get("sampling_params", {})}


def _openai_body(args: argparse.Namespace, path: str, one: Row) -> dict[str, Any]:
    stream, ignores = not args.disable_stream, not args.disable_ignore_eos
    body: dict[str, Any] = {
        "model": args.model,
        "temperature": 0,
        "max_tokens": one.output_len,
        "ignore_eos": ignores,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    if path == CHAT:
        text = one.prompt if isinstance(one.prompt, str) else _words(one.prompt)
        body |= {"messages": [{"role": "user", "content": text}]}
        body |= {"logprobs": True, "top_logprobs": args.top_logprobs_num} if args.return_logprob else {}
    else:
        body |= {"prompt": one.prompt} | ({"logprobs": args.top_logprobs_num} if args.return_logprob else {})
    return body


def _words(ids: Sequence[int]) -> str:
    """So many words, about a token each: chats take no ids."""
    words = ("time", "year", "people", "way", "day", "man", "thing", "life", "child", "world", "school", "state", "family")
    return " ".join(words[i % len(words)] for i in ids)


def _warm_up(args: argparse.Namespace, server: _Server, asked: list[tuple[str, dict[str, Any]]]) -> None:
    if args.warmup_requests < 1:
        return
    first = [asked[0]] * args.warmup_requests
    outcomes, _ = asyncio.run(send_all(Address(server.url), server.headers, first, None, len(first), 0, lambda outcome: None))
    failed = next((o.error for o in outcomes if o.error is not None), None)
    if failed is not None:
        raise CommandError(f"the first request failed: {failed}")
    print(f"Warmup completed with {len(first)} sequences. Starting main benchmark run...")


def _run(args: argparse.Namespace, server: _Server, asked: list[tuple[str, dict[str, Any]]]) -> tuple[list[Outcome], float]:
    rate = None if math.isinf(args.request_rate) else args.request_rate
    limit = args.max_concurrency or len(asked)
    with tqdm(total=len(asked), disable=args.disable_tqdm) as bar:

        def note(outcome: Outcome) -> None:
            bar.update(1)

        return asyncio.run(send_all(Address(server.url), server.headers, asked, rate, limit, args.seed, note))


# --- results ----------------------------------------------------------------------------------------------------------------

_SETTINGS = "tag backend dataset_name max_concurrency sharegpt_output_len random_input_len random_output_len random_range_ratio"


def _result(args: argparse.Namespace, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    settings = {name: getattr(args, name) for name in _SETTINGS.split()}
    rate = "inf" if math.isinf(args.request_rate) else args.request_rate
    more = {"request_rate": rate, "num_prompts": len(outcomes), "model": args.model, "time": time.time()}
    result = settings | more | rates(outcomes, seconds) | latencies(outcomes)
    result["total_output_tokens_retokenized"] = result["total_output_tokens"]  # the server counts them
    if args.output_details:
        result |= {
            "input_lens": [o.input_len for o in outcomes],
            "output_lens": [o.output_len for o in outcomes],
            "ttfts": [o.first for o in outcomes],
            "itls": [o.gaps for o in outcomes],
            "errors": [o.error or "" for o in outcomes],
        }
    return result


def _table(args: argparse.Namespace, result: dict[str, Any]) -> list[str]:
    limit = args.max_concurrency or "not set"
    return [
        "\n" + title("Serving Benchmark Result"),
        row("Backend", args.backend),
        row("Traffic request rate", result["request_rate"]),
        row("Max request concurrency", limit),
        row("Successful requests", result["completed"]),
        row("Benchmark duration (s)", result["duration"]),
        row("Total input tokens", result["total_input_tokens"]),
        row("Total generated tokens", result["total_output_tokens"]),
        row("Total generated tokens (retokenized)", result["total_output_tokens_retokenized"]),
        row("Request throughput (req/s)", result["request_throughput"]),
        row("Input token throughput (tok/s)", result["input_throughput"]),
        row("Output token throughput (tok/s)", result["output_throughput"]),
        row("Total token throughput (tok/s)", result["total_throughput"]),
        row("Concurrency", result["concurrency"]),
        *latency_lines(result),
        "=" * 50,
    ]
