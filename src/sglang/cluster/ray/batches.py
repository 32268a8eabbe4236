"""A file of requests on Ray Data: servers in its actors, each with a part of the requests after the other.

    driver   lines, sorted --blocks--> actor: our own server as its child --blocks--> answers, written as they come

An actor that dies is started again, and its part is asked for again: answers depend on the requests alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data

from sglang.cluster.child import Child, LoadFailed
from sglang.cluster.model_list import ServedModel, common_flags
from sglang.cluster.ray.connection import connect
from sglang.cluster.upstream import UpstreamLost
from sglang.common.batch_lines import Item
from sglang.common.batch_run import NoAnswer, answer_row, run_window
from sglang.common.devices import cuda_is_here
from sglang.srt.errors import ConfigError
from sglang.srt.server_args import ServerArgs

TURNS = 4
"""windows of requests in one part: at the end of a part some places of the window are empty"""
JSON = [(b"content-type", b"application/json")]
COLUMN = "line"


class Worker:
    """What Ray Data calls with parts of the file, one after the other."""

    def __init__(self, flags: dict[str, Any], endpoint: str, window: int) -> None:
        """Starts the server. Raises LoadFailed."""
        self._endpoint, self._window = endpoint, window
        self._loop = asyncio.new_event_loop()
        folder = Path(tempfile.mkdtemp(prefix="sglang-batch-"))  # 0700
        self._child = Child(ServedModel(str(flags["model_path"]), flags), folder, 0, {})
        self._loop.run_until_complete(self._child.start(0))

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Lines of JSON: requests with `custom_id` and `body`, then rows of the output."""
        rows: list[str] = []
        requests = [json.loads(str(line)) for line in part[COLUMN]]

        def take(row: dict[str, Any]) -> None:
            rows.append(json.dumps(row))

        self._loop.run_until_complete(run_window(requests, self._answer, take, min(self._window, len(requests))))
        return {COLUMN: rows}

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(request["body"]).encode()

        async def send() -> tuple[int, Any]:
            try:
                head, answer = await self._child.upstream.ask("POST", self._endpoint, JSON, body)
                return head.status, json.loads(answer)
            except UpstreamLost as error:
                if self._child.has_ended:
                    os._exit(1)  # Ray Data starts another actor, and gives it this part
                raise NoAnswer("connection_error", "the connection to the server was lost") from error

        return await answer_row(request["custom_id"], send)


class RayBatch:
    """`args`: flags of the servers. `num_cpus`: of each of the `num_workers`."""

    def __init__(self, address: str, args: ServerArgs, num_workers: int, num_cpus: float, window: int) -> None:
        self._address, self._num_workers, self._num_cpus, self._window = address, num_workers, num_cpus, window
        on_cuda = args.device == "cuda" or (args.device == "auto" and cuda_is_here())
        self._num_gpus = float(args.tp_size) if on_cuda else 0.0
        self._flags = common_flags(args) | {"model_path": args.model_path}
        if args.threads is None and not on_cuda:
            self._flags["threads"] = str(max(int(num_cpus), 1))

    def run(self, endpoint: str, items: list[Item], body_of: Callable[[Item], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows of the output, in the order in which they come. Raises ConfigError."""
        connect(self._address)
        try:
            yield from self._rows(endpoint, items, body_of)
        except ray.exceptions.RayError as error:
            raise ConfigError(f"Ray could not run the batch: {_reason(error)}") from error
        finally:
            ray.shutdown()

    def _rows(self, endpoint: str, items: list[Item], body_of: Callable[[Item], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        size = max(min(TURNS * self._window, math.ceil(len(items) / self._num_workers)), 1)
        # ASCII: whatever stands in a text, a column of Arrow can hold it
        lines = [{COLUMN: json.dumps({"custom_id": item.custom_id, "body": body_of(item)})} for item in items]
        parts = ray.data.from_items(lines, override_num_blocks=math.ceil(len(items) / size))
        answers = parts.map_batches(
            Worker,
            fn_constructor_args=(self._flags, endpoint, self._window),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=self._num_workers),
            num_cpus=self._num_cpus,
            num_gpus=self._num_gpus or None,
        )
        for row in answers.iter_rows():
            yield json.loads(row[COLUMN])


def _reason(error: BaseException) -> str:
    """The line that says why, among Ray's traces of it."""
    lines = [line for line in str(error).splitlines() if LoadFailed.__name__ in line]
    return lines[-1].partition(f"{LoadFailed.__name__}: ")[2] if lines else str(error)[-500:]
