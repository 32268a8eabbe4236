"""python -m sglang.profiler: profiles some steps of a running server."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx

from sglang.commands.arguments import CommandError

PROG = "python -m sglang.profiler"
DEFAULT_URL = "http://127.0.0.1:30000"
_LOOK_SECONDS = 0.05


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description="Profile some steps of a running server, which writes a file for Python's pstats."
    )
    parser.add_argument("--url", default=DEFAULT_URL)
    parser.add_argument("--num-steps", type=int, default=5)
    parser.add_argument("--api-key")
    parser.add_argument("--output-dir", help="not followed: the server chooses its file")
    for name in ("--cpu", "--gpu", "--mem", "--rpd", "--profile-by-stage", "--merge-profiles"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--profile-name", "--profile-prefix", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = create_parser().parse_args(argv)
    try:
        run_profile(args.url, args.num_steps, output_dir=args.output_dir, api_key=args.api_key)
    except CommandError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    return 0


def run_profile(
    url: str | None,
    num_steps: int,
    activities: Sequence[str] = (),
    output_dir: str | None = None,
    profile_by_stage: bool = False,
    api_key: str | None = None,
    **others: Any,
) -> str:
    """Profiles the scheduler from now until it has taken `num_steps` steps; returns what the server says, which names the file.
    `activities` and the like change nothing: the profile is one of Python's. Raises CommandError."""
    if num_steps < 1:
        raise CommandError(f"--num-steps must be at least 1, got {num_steps}")
    if output_dir is not None:
        print(f"{PROG}: the server chooses where its file lies, not {output_dir}", file=sys.stderr)
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=url or DEFAULT_URL, headers=headers, timeout=60.0) as client:
        last = steps_taken(client) + num_steps
        ask(client, "POST", "/start_profile", {})
        print(f"Profiling {num_steps} steps of {client.base_url}", flush=True)
        try:
            while steps_taken(client) < last:
                time.sleep(_LOOK_SECONDS)
        finally:
            said = str(ask(client, "POST", "/stop_profile", {})["message"])
    print(said)
    return said


def steps_taken(client: httpx.Client) -> int:
    """The number of steps by the server since it started. Raises CommandError."""
    return int(ask(client, "GET", "/get_server_info")["internal_states"][0]["num_steps"])


def ask(client: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    """The JSON of an answer. Raises CommandError."""
    try:
        reply = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise CommandError(f"{client.base_url} does not answer: {error}") from error
    if reply.status_code != 200:
        raise CommandError(f"{path} answered {reply.status_code}: {reply.text[:300]}")
    return reply.json()
