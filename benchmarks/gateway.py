"""What the gateway of several models costs: processor time a request and a chunk, with servers that answer at once.

    python -m benchmarks.gateway [--requests 3000] [--chunks 60000] [--ray]

`--ray`: with replicas on Ray, where each request takes a lease; the processor time is that of the gateway's process alone. Three processes: clients, the gateway as `sglang serve --models` has it (all checks, no keys), and a server that answers every request with a
short body, or with a stream of chunks. Processor time of the gateway alone is counted, so that what else runs on the machine matters little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import uvloop

from benchmarks.servers import cpu_seconds

CHUNK = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
OUTPUT = b": out " + b"A" * 60 + b"\n\n"
SHORT = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"word"}}]}'
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"word " * 200 + b'"}]}'
CONNECTIONS = 16
PACED = 64
PACE = 0.02
"""seconds between the tokens of a stream, as a model makes them"""


class Instant(asyncio.Protocol):
    """Answers as fast as it can: a body, or as many chunks as the path says, STEP of them in a write."""

    STEP = 4

    def connection_made(self, transport: Any) -> None:
        self._transport, self._data = transport, b""
        self._may_write = asyncio.Event()
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found or len(rest) < len(BODY):
            return
        self._data = b""
        _, _, query = head.split(b" ")[1].partition(b"?")
        if query:
            what, number = query.split(b"=")
            self._task = asyncio.ensure_future(self._stream(int(number), is_paced=what == b"paced"))
        else:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(SHORT) + SHORT)

    async def _stream(self, count: int, is_paced: bool) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        event = OUTPUT + CHUNK  # as a server behind a gateway sends it
        piece = b"%x\r\n%b\r\n" % (len(event), event)
        step = 1 if is_paced else self.STEP
        for _ in range(0, count, step):
            self._transport.write(piece * step)
            await self._may_write.wait()
            await asyncio.sleep(PACE if is_paced else 0)
        self._transport.write(b"0\r\n\r\n")


def serve_instantly(path: str) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_unix_server(Instant, path)
        await server.serve_forever()

    uvloop.run(run())


class InstantReplica:
    """Takes the place of cluster/ray/replica.py: in its actor is the server that answers at once."""

    async def __init__(self, *_: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        from ray import serve

        self._server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self._place = {
            "host": "127.0.0.1",
            "port": port,
            "token": "",
            "pid": os.getpid(),
            "fingerprint": "",
            "replica": serve.get_replica_context().replica_id.unique_id,
        }

    async def lease(self, key: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield self._place
        await asyncio.Event().wait()


def ray_pool() -> Any:
    from sglang.cluster.model_list import ServedModel
    from sglang.cluster.ray import deployment
    from sglang.cluster.ray.leases import RayPool

    deployment.Replica = InstantReplica  # type: ignore[misc,assignment]
    made = deployment.Deployment("auto", "bench", deployment.Scale(2, 2, 1.0, 0.1, 0.0), 1.0, 1 << 16)
    return RayPool(made, ServedModel("m", {}), {}, 60.0)


def serve_gateway(path: str, listener: socket.socket, on_ray: bool) -> None:
    from sglang.cluster.gateway import Gateway
    from sglang.cluster.metrics import GatewayMetrics
    from sglang.cluster.serving import guarded
    from sglang.cluster.upstream import Address, Upstream
    from sglang.srt.config import HttpOptions
    from sglang.srt.process.uvicorn_server import HttpServer, uvicorn_config
    from sglang.srt.server.http.keys import KeyRing
    from sglang.srt.server.http.starting import OuterApp

    http = HttpOptions(log_level="error")

    async def run() -> None:
        child = SimpleNamespace(upstream=Upstream(Address(path=path)), fingerprint="", replica="")
        entry = SimpleNamespace(model=SimpleNamespace(name="m", flags={}), run=None, state="ready", error="")

        @contextlib.asynccontextmanager
        async def lease(name: str, *_: Any, **__: Any) -> AsyncIterator[Any]:
            yield child

        pool: Any = (
            ray_pool()
            if on_ray
            else SimpleNamespace(
                entries={"m": entry},
                default="m",
                loaded=lambda: [entry],
                lease=lease,
                leases=lambda: [lease("m")],
                wants_key=False,
            )
        )
        if on_ray:
            await pool.preload()
        outer = OuterApp()
        outer.app = guarded(Gateway(pool, GatewayMetrics(), True), http, KeyRing((), None), {})
        listener.listen()
        await HttpServer(uvicorn_config(outer, http)).serve(sockets=[listener])

    uvloop.run(run())


async def one_client(port: int, path: str, count: int) -> int:
    """Sends `count` requests on one connection. Returns the bytes that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    num_bytes = 0
    for _ in range(count):
        writer.write(head.encode() + BODY)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        if b"chunked" in answer:
            while (size := int(await reader.readline(), 16)) > 0:
                num_bytes += size
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        else:
            num_bytes += len(await reader.readexactly(len(SHORT)))
    writer.close()
    return num_bytes


async def first_chunk(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> float:
    """Seconds from a request on an open connection to the first bytes of its stream."""
    reader, writer = connection
    head = "POST /v1/chat/completions?paced=2 HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    began = time.perf_counter()
    writer.write(head.encode() + BODY)
    await reader.readuntil(b"\r\n\r\n")
    first = await reader.readline()
    seconds = time.perf_counter() - began
    while size := int(first, 16):
        await reader.readexactly(size + 2)
        first = await reader.readline()
    await reader.readexactly(2)
    return seconds


async def measure_first_chunks(path: str, port: int, count: int) -> None:
    """With and without the gateway, in turns."""
    ways = [await asyncio.open_unix_connection(path), await asyncio.open_connection("127.0.0.1", port)]
    found = [[await first_chunk(way) for way in ways] for _ in range(count)]
    alone, through = (1000 * statistics.median(times) for times in zip(*found, strict=True))
    print(f"first chunk  {alone:.2f} ms without the gateway, {through:.2f} ms with it (medians of {count})")


async def measure(pid: int, path: str, port: int, num_requests: int, num_chunks: int) -> None:
    await measure_first_chunks(path, port, 200)
    each = max(num_requests // CONNECTIONS, 1)
    for _ in range(2):  # the first round warms up
        before, began = cpu_seconds(pid), time.perf_counter()
        await asyncio.gather(*(one_client(port, "/v1/chat/completions", each) for _ in range(CONNECTIONS)))
        used, wall = cpu_seconds(pid) - before, time.perf_counter() - began
    count = each * CONNECTIONS
    print(
        f"requests  {1e6 * used / count:7.0f} us of processor time each: {count / used:7.0f}/s on a core ({count / wall:.0f}/s here)"
    )
    await measure_chunks(pid, port, "chunks", CONNECTIONS, num_chunks)
    await measure_chunks(pid, port, "paced", PACED, num_chunks // 4)


async def measure_chunks(pid: int, port: int, what: str, num_streams: int, num_chunks: int) -> None:
    """`paced`: one at a time, else as fast as they are taken: then they are joined on the way."""
    each = max(num_chunks // num_streams, 1)
    before, began = cpu_seconds(pid), time.perf_counter()
    came = sum(await asyncio.gather(*(one_client(port, f"/v1/chat/completions?{what}={each}", 1) for _ in range(num_streams))))
    used, wall = cpu_seconds(pid) - before, time.perf_counter() - began
    count = came // len(CHUNK)
    print(
        f"{what:8}  {1e6 * used / count:7.1f} us of processor time each: {count / used:7.0f}/s on a core ({count / wall:.0f}/s here)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--chunks", type=int, default=60000)
    parser.add_argument("--ray", action="store_true")
    args = parser.parse_args()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        path = f"{folder}/instant.sock"
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        processes = [
            context.Process(target=serve_instantly, args=(path,)),
            context.Process(target=serve_gateway, args=(path, listener, args.ray)),
        ]
        for process in processes:
            process.start()
        try:
            deadline = time.monotonic() + 120
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0 and os.path.exists(path):
                        break
                if time.monotonic() > deadline:
                    raise TimeoutError("the gateway did not start")
                time.sleep(0.1)
            asyncio.run(measure(processes[1].pid or 0, path, port, args.requests, args.chunks))
        finally:
            for process in processes:
                process.terminate()
                process.join(30)
                process.kill()
                process.join()


if __name__ == "__main__":
    main()
