"""`sglang batch -i requests.jsonl -o answers.jsonl`: runs a file of requests, in OpenAI's batch format, and can go on where it was stopped.

Answers are written as they come. Those that the output has already are not asked for again; a line that was cut short is. Requests that name
no seed get one from their custom_id, so that a run that was stopped ends with the answers of one that was not. Requests are sent sorted by
their text, which brings those with a common prefix together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx

from sglang.commands.arguments import CommandError, Parser, add_server_choice
from sglang.commands.connection import Connection, connect
from sglang.common.batch_lines import BadLine, Checker, Item, body_of, parse_line, read_lines
from sglang.common.batch_run import NoAnswer, answer_row, run_window
from sglang.common.install import needs_extra

PROG = "sglang batch"
JSON = {"content-type": "application/json"}


def batch(argv: list[str]) -> int:
    """The command."""
    parser = Parser(PROG, "Run a file of requests (OpenAI's batch format). Started again, it goes on where it was stopped.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="alias, folder, .gguf file or hub id; not with --url")
    parser.add_argument("-i", "--input", required=True, metavar="FILE", help="requests, one JSON object a line")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="answers, one JSON object a line, as they come")
    parser.add_argument("--window", type=int, default=64, metavar="N", help="requests in flight (default: 64)")
    add_server_choice(parser)
    group = parser.add_argument_group("Ray", "servers of MODEL where Ray has room for them, each with its part of the file")
    group.add_argument("--ray", metavar="ADDRESS", help="auto, or the address of a cluster, such as 10.0.0.1:6379")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="with --ray: servers (default: 1)")
    group.add_argument("--worker-cpus", type=float, default=1.0, metavar="C", help="with --ray: CPUs of each (default: 1)")
    parser.end_with("-i requests.jsonl -o answers.jsonl", "./model.gguf -i requests.jsonl -o answers.jsonl -- --threads 8")
    args, serve_flags = parser.parse_split(argv)
    if not 1 <= args.window <= 4096:
        parser.error(f"--window must be between 1 and 4096, got {args.window}")
    if args.model is not None and args.url is not None:
        parser.error("MODEL and --url are both given: leave one out")
    if args.ray is not None and args.url is not None:
        parser.error("--ray and --url are both given: leave one out")
    if not 1 <= args.workers <= 1024 or not 0 < args.worker_cpus <= 1024:
        parser.error(
            f"--workers must be between 1 and 1024, and --worker-cpus above 0, got {args.workers} and {args.worker_cpus}"
        )
    items, endpoint = read_items(Path(args.input))
    with _alone(Path(args.output)) as output:
        done = read_done(output)
        left = sorted((item for item in items if item.custom_id not in done), key=lambda item: item.key)
        if len(left) < len(items):
            print(f"{PROG}: {len(items) - len(left)} of {len(items)} requests have their answers", file=sys.stderr)
        if not left:
            return 0
        source, answers = Source(Path(args.input), endpoint), Answers(output, len(left), len(items))
        with contextlib.closing(source), contextlib.closing(answers):
            if args.ray is not None:
                run_on_ray(args, serve_flags, source, left, answers)
            else:
                with connect(args, args.model, serve_flags, PROG) as connection:
                    asyncio.run(run_on_server(connection, source, left, answers, args.window))
    if answers.error:
        print(f"{PROG}: some requests had no answer ({answers.error}): run this again", file=sys.stderr)
    elif answers.num_failed:
        print(f"{PROG}: {answers.num_failed} of {len(items)} requests failed; their lines have the error", file=sys.stderr)
    return 1 if answers.num_failed else 0


# --- files ------------------------------------------------------------------------------------------------------------------


def read_items(path: Path) -> tuple[list[Item], str]:
    """The requests of a file, and the endpoint of all of them. Raises CommandError for a line that is none."""
    checker = Checker()
    try:
        with path.open("rb") as file:
            items = [checker.item(number, start, line, parse_line(number, line)) for number, start, line in read_lines(file)]
    except BadLine as error:
        raise CommandError(f"{path}, line {error.line}: {error}") from error
    except OSError as error:
        raise CommandError(f"--input {path} cannot be read: {error.strerror}") from error
    if not items:
        raise CommandError(f"--input {path} has no requests")
    return items, checker.endpoint


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[IO[bytes]]:
    """The output, which one run at a time may write. Raises CommandError."""
    import fcntl

    try:
        file = open(path, "a+b")  # noqa: SIM115  closed below
    except OSError as error:
        raise CommandError(f"--output {path} cannot be opened: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandError(f"--output {path} is being written by another run: wait for it, or name another file") from error
        yield file


def read_done(output: IO[bytes]) -> set[str]:
    """Names of the requests that have their answers. What was cut short in the middle of a line is taken away. Raises CommandError for a
    file of something else."""
    output.seek(0)
    done: set[str] = set()
    end = 0
    for number, line in enumerate(output, 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            name, _ = row["custom_id"], row["response"]["status_code"]
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"--output {output.name}, line {number}: not an answer of a batch; name another file") from error
        done.add(name)
        end += len(line)
    output.truncate(end)
    output.seek(0, os.SEEK_END)
    return done


# --- running ----------------------------------------------------------------------------------------------------------------


class Answers:
    """Writes answers, each at once and whole: a run that is killed leaves whole lines but for the last. A request that had none is left
    to the next run. `total`: requests of the file; `left`: those that are asked for."""

    def __init__(self, output: IO[bytes], left: int, total: int) -> None:
        from tqdm import tqdm

        self._output = output
        self._bar = tqdm(total=total, initial=total - left, unit="request", disable=None)
        self.num_failed = 0
        self.error = ""
        """of a request that had no answer"""

    def take(self, row: dict[str, Any]) -> None:
        response = row["response"]
        self.num_failed += response is None or response["status_code"] != 200
        if response is None:
            self.error = self.error or row["error"]["message"]
        else:
            self._output.write(_encode(row) + b"\n")
            self._output.flush()
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def _encode(row: dict[str, Any]) -> bytes:
    """Text as it is, but for half a pair of surrogates, which only JSON's escapes can hold."""
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(row).encode()


class Source:
    """The input: lines are read again when they are sent."""

    def __init__(self, path: Path, endpoint: str) -> None:
        self._file = path.open("rb")
        self.endpoint = endpoint

    def body(self, item: Item) -> dict[str, Any]:
        self._file.seek(item.start)
        return body_of(self._file.read(item.size), self.endpoint, item.custom_id)

    def close(self) -> None:
        self._file.close()


async def run_on_server(connection: Connection, source: Source, items: list[Item], answers: Answers, window: int) -> None:
    """`window` requests at a time."""
    address = connection.address
    timeout = httpx.Timeout(30.0, read=None, pool=None)
    transport = address.async_transport(httpx.Limits(max_connections=window))
    async with httpx.AsyncClient(
        base_url=address.base_url, headers=address.headers, timeout=timeout, transport=transport
    ) as client:

        async def answer(item: Item) -> dict[str, Any]:
            data = json.dumps(source.body(item)).encode()

            async def send() -> tuple[int, Any]:
                try:
                    reply = await client.post(source.endpoint, content=data, headers=JSON)
                    return reply.status_code, reply.json()
                except (httpx.TransportError, ValueError) as error:
                    raise NoAnswer("connection_error", str(error) or type(error).__name__) from error

            return await answer_row(item.custom_id, send)

        await run_window(items, answer, answers.take, min(window, len(items)))


def run_on_ray(args: argparse.Namespace, flags: list[str], source: Source, items: list[Item], answers: Answers) -> None:
    """Servers in actors of Ray Data, a part of the file after the other. Raises CommandError."""
    with needs_extra("ray-data"):
        from sglang.cluster.ray.batches import RayBatch
        from sglang.srt.errors import SglangError
        from sglang.srt.server_args import parse_server_args
    server = parse_server_args([*(["--model-path", args.model] if args.model is not None else []), *flags], PROG)
    try:
        for row in RayBatch(args.ray, server, args.workers, args.worker_cpus, args.window).run(
            source.endpoint, items, source.body
        ):
            answers.take(row)
    except SglangError as error:
        raise CommandError(str(error)) from error
