"""The cost of the HTTP server itself: chat requests against an engine that answers at once.

    .venv-test/bin/python -m benchmarks.http_overhead [--seconds 5] [--json FILE] [--profile FILE]

Three processes: the server as `sglang serve` runs it (HTTP, templates, tokenizer and detokenizer of the default model), an
engine that says the same tokens again without computing anything, and this client. Rates are given per second of the clock
and per second of the server's own CPU time; on a machine with other work to do only the second says what one core does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import free_port

MODEL = "smollm2-135m-instruct"
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France? Answer in one sentence, please, and do not explain."},
]
ANSWER_TOKENS = 16
STREAM_TOKENS = 200


# --- the engine ---------------------------------------------------------------------------------------------------------------


def run_engine(directory: str) -> None:
    """Speaks the scheduler's half of messages.py: a whole answer at once, or one token a step for each stream."""
    from sglang.srt.messages import AbortReq, BatchTokenOut, FinishReason, SchedulerReady, ShutdownReq, TokenizedReq, TokenOut
    from sglang.srt.process.transport import SocketSchedulerEnd

    link = SocketSchedulerEnd(directory)
    link.send(SchedulerReady({}))
    streams: dict[str, tuple[TokenizedReq, int]] = {}
    while True:
        outs: list[TokenOut] = []
        for message in link.receive(0.0 if streams else 0.5):
            if isinstance(message, ShutdownReq):
                return
            if isinstance(message, AbortReq):
                streams.pop(message.rid or "", None)
            if isinstance(message, TokenizedReq):
                limit = message.sampling.max_new_tokens or 1
                if message.stream:
                    streams[message.rid] = (message, 0)
                    continue
                ids = [message.input_ids[i % len(message.input_ids)] for i in range(limit)]
                finish = FinishReason("length", length=limit)
                outs.append(TokenOut(message.rid, ids, finish, prompt_len=len(message.input_ids), completion_len=limit))
        for rid, (req, done) in list(streams.items()):
            ids, limit = req.input_ids, req.sampling.max_new_tokens or 1
            done += 1
            last = FinishReason("length", length=limit) if done == limit else None
            outs.append(TokenOut(rid, [ids[done % len(ids)]], last, prompt_len=len(ids), completion_len=done))
            if last is not None:
                del streams[rid]
            else:
                streams[rid] = (req, done)
        if outs:
            link.send(BatchTokenOut(outs))


# --- the server ---------------------------------------------------------------------------------------------------------------


def run_server(port: int, profile: str | None) -> None:
    """The server's own process, with the engine as its child. Prints its CPU seconds when asked; ends when standard input does.
    A profile begins with the first question, so that it holds requests and no imports."""
    import cProfile

    import uvloop

    profiler = cProfile.Profile() if profile else None
    uvloop.run(_serve(port, profiler))
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(profile or "")


async def _serve(port: int, profiler: Any) -> None:
    import threading

    from sglang.srt.process.endpoint import listen
    from sglang.srt.process.heap import keep_loaded_objects, limit_arenas
    from sglang.srt.process.logs import configure_access_log, configure_logging
    from sglang.srt.process.transport import SocketServerEnd
    from sglang.srt.process.uvicorn_server import HttpServer, uvicorn_config
    from sglang.srt.server.http.app import create_app
    from sglang.srt.server.tokenization.tokenizer import open_tokenizer
    from sglang.srt.server.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import ServerArgs

    limit_arenas()
    configure_logging("warning")
    configure_access_log("warning")
    config = ServerArgs(port=port, log_level="warning").resolve()
    link = SocketServerEnd()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "benchmarks.http_overhead", "--role", "engine", "--directory", str(link.directory)]
    engine = subprocess.Popen(command, env=environment)
    tokenizer = open_tokenizer(config.text)
    assert tokenizer is not None
    info = {
        "architecture": "none",
        "vocab_size": tokenizer.vocabulary.size,
        "context_len": 8192,
        "max_total_tokens": 1 << 20,
        "max_running_requests": 4096,
        "kernels": "none",
    }
    manager = TokenizerManager(tokenizer, info, config.http, config.text, link.send)
    http = HttpServer(uvicorn_config(create_app(manager, config.http), config.http))
    keep_loaded_objects()
    loop = asyncio.get_running_loop()

    async def receive() -> None:
        while True:
            manager.handle(await link.receive())

    def stop() -> None:
        for line in sys.stdin:
            if line == "cpu\n":
                if profiler is not None:
                    loop.call_soon_threadsafe(profiler.enable)
                usage = resource.getrusage(resource.RUSAGE_SELF)
                print(usage.ru_utime + usage.ru_stime, flush=True)
        loop.call_soon_threadsafe(setattr, http, "should_exit", True)

    await link.receive()  # the engine is there: what is sent before that is lost
    receiver = asyncio.ensure_future(receive())
    threading.Thread(target=stop, daemon=True).start()
    await http.serve(sockets=[listen("127.0.0.1", port)])
    receiver.cancel()
    engine.kill()
    engine.wait()
    link.close()


# --- the client ---------------------------------------------------------------------------------------------------------------


class Client:
    """One keep-alive connection, with as little between it and the socket as possible."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))

    async def whole(self, request: bytes) -> bytes:
        """Sends a request; the body of the answer."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        return await self._reader.readexactly(length)

    async def stream(self, request: bytes) -> tuple[int, float]:
        """Sends a request; (number of chunks, seconds until the first)."""
        began = time.perf_counter()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        data = await self._reader.readuntil(b"\n\n")
        first = time.perf_counter() - began
        count, tail = data.count(b"data: "), b""
        while b"[DONE]" not in tail:
            data = await self._reader.read(1 << 16)
            assert data, "the server hung up"
            count += data.count(b"data: ")
            tail = tail[-16:] + data
        if not tail.endswith(b"0\r\n\r\n"):
            await self._reader.readuntil(b"0\r\n\r\n")
        return count, first

    def close(self) -> None:
        self._writer.close()


def request_bytes(stream: bool, tokens: int) -> bytes:
    body = json.dumps({"model": MODEL, "messages": MESSAGES, "max_tokens": tokens, "temperature": 0, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Server:
    """The server process, with its clock."""

    process: subprocess.Popen[str]
    port: int

    def cpu_seconds(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("cpu\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


async def whole_answers(server: Server, seconds: float, connections: int) -> dict[str, float]:
    """Chat requests, not streamed."""
    request, end = request_bytes(False, ANSWER_TOKENS), time.perf_counter() + seconds
    clients = [await Client.open(server.port) for _ in range(connections)]

    async def work(client: Client) -> int:
        count = 0
        while time.perf_counter() < end:
            await client.whole(request)
            count += 1
        return count

    began, cpu = time.perf_counter(), server.cpu_seconds()
    count = sum(await asyncio.gather(*map(work, clients)))
    spent, used = time.perf_counter() - began, server.cpu_seconds() - cpu
    for client in clients:
        client.close()
    return {"requests_per_second": count / spent, "requests_per_cpu_second": count / used}


async def streams(server: Server, seconds: float, connections: int) -> dict[str, float]:
    """Streamed chat requests of many tokens."""
    request, end = request_bytes(True, STREAM_TOKENS), time.perf_counter() + seconds
    clients = [await Client.open(server.port) for _ in range(connections)]

    async def work(client: Client) -> int:
        count = 0
        while time.perf_counter() < end:
            count += (await client.stream(request))[0]
        return count

    began, cpu = time.perf_counter(), server.cpu_seconds()
    count = sum(await asyncio.gather(*map(work, clients)))
    spent, used = time.perf_counter() - began, server.cpu_seconds() - cpu
    for client in clients:
        client.close()
    return {"chunks_per_second": count / spent, "chunks_per_cpu_second": count / used}


async def first_chunks(server: Server, count: int) -> dict[str, float]:
    """One stream at a time: how long until its first chunk."""
    request, client = request_bytes(True, 2), await Client.open(server.port)
    times = [(await client.stream(request))[1] for _ in range(count)]
    client.close()
    return {"first_chunk_ms_median": 1e3 * statistics.median(times), "first_chunk_ms_best": 1e3 * min(times)}


async def measure(server: Server, seconds: float) -> dict[str, float]:
    for _ in range(200):
        try:
            client = await Client.open(server.port)
            break
        except OSError:
            await asyncio.sleep(0.1)
    else:
        raise RuntimeError("the server did not start")
    for _ in range(50):
        await client.whole(request_bytes(False, ANSWER_TOKENS))
    client.close()
    return {
        **await whole_answers(server, seconds, 32),
        **await streams(server, seconds, 64),
        **await first_chunks(server, 200),
    }


def start_server(profile: str | None = None) -> Server:
    """A server process of its own, on some free port."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.http_overhead", "--role", "server", "--port", str(port)]
    if profile:
        command += ["--profile", profile]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    return Server(process, port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", help="write the figures")
    parser.add_argument("--profile", help="write a cProfile of the server (which slows it down)")
    parser.add_argument("--role", choices=("client", "server", "engine"), default="client", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role == "engine":
        run_engine(args.directory)
    elif args.role == "server":
        run_server(args.port, args.profile)
    else:
        server = start_server(args.profile)
        try:
            figures = asyncio.run(measure(server, args.seconds))
        finally:
            assert server.process.stdin is not None
            server.process.stdin.close()
            server.process.wait(20)
        for name, value in figures.items():
            print(f"{name:28} {value:10.2f}")
        if args.json:
            Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
