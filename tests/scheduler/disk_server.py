"""Toy schedulers over a prefix cache on disk, and what may happen to them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.config import ScheduleOptions
from sglang.srt.forward_batch import Int32Array, StateBytes
from sglang.srt.messages import AbortReq, ShutdownReq, StateReq, TokenizedReq
from sglang.srt.scheduler.cache.disk.host_store import HostStore
from sglang.srt.scheduler.cache.disk.pace import Pace
from sglang.srt.scheduler.cache.disk.records import RecordFormat, layout_fingerprint
from sglang.srt.scheduler.cache.disk.store import DiskRoom, RecordStore
from sglang.srt.scheduler.cache.disk.tier import DiskTier, OpenTier, WritePolicy
from sglang.srt.scheduler.cache.radix_cache import Salt
from tests.scheduler.toy import Answer, Harness, ToyRuns, ToyWorker, expected_output, make_req

ROOM = DiskRoom(1 << 20, least_free=0)


class Always(Pace):
    """Reading is always worth it, and waits as long as it takes."""

    def is_worth(self, num_tokens: int, num_bytes: int) -> bool:
        return num_tokens > 0

    def patience(self, num_tokens: int) -> float:
        return 600.0


def make_form(runs: ToyRuns, fingerprint: str = "same") -> RecordFormat:
    return RecordFormat(layout_fingerprint(fingerprint, runs.layout), runs.run, runs.run_bytes)


class Server:
    """A scheduler with a cache in `folder`. `stop` lets it drain; `kill` lets it do nothing more."""

    def __init__(
        self,
        folder: Path,
        worker: ToyWorker | None = None,
        options: ScheduleOptions | None = None,
        fingerprint: str = "same",
        is_shared: bool = False,
        room: DiskRoom = ROOM,
        check: bool = True,
        host_records: int = 0,
        disk: bool = True,
        policy: WritePolicy = "write_through_selective",
        states: StateBytes | None = None,
    ) -> None:
        """`host_records`: size of the tier in host memory; 0: there is none."""
        self.tier: DiskTier
        worker = worker or ToyWorker()
        runs = ToyRuns(worker)

        def open_tier(memory: Any, finish: Any) -> DiskTier:
            form = make_form(runs, fingerprint)
            below = RecordStore(folder, form, room, {"model": "toy"}) if disk else None
            arena = runs.arena(host_records * runs.run_bytes)
            store = HostStore(form, arena, below, policy != "write_back") if host_records or below is None else below
            self.tier = DiskTier(store, runs, memory, finish, is_shared, Always(), policy, states)
            return self.tier

        opened: OpenTier = open_tier
        self.harness = Harness(worker, options, check=check, open_tier=opened)

    def ask(self, *reqs: TokenizedReq) -> list[Answer]:
        """All answers, each as the toy's oracle says; nothing is on its way any more."""
        self.harness.put(*reqs)
        for _ in range(100_000):
            if not (self.harness.scheduler._live or self.tier.is_busy):
                break
            assert self.tier._reader.is_alive and self.tier._writer.is_alive
            self.harness.step()
        else:
            raise AssertionError("the requests do not end")
        self.check()
        answers = [self.harness.answers[req.rid] for req in reqs]
        for req, answer in zip(reqs, answers, strict=True):
            assert answer.ids == expected_output(req).ids
        return answers

    def check(self) -> None:
        assert self.harness.scheduler.check_integrity() == []
        assert self.harness.scheduler.memory.tree.num_locked == 0

    def cached(self, req: TokenizedReq) -> int:
        return self.ask(req)[0].last.cached_len

    @property
    def stats(self) -> Any:
        self.harness.put(StateReq(1))
        return self.harness.replies[-1].stats

    def stop(self) -> None:
        self.harness.put(ShutdownReq())
        self.harness.scheduler.run()

    def kill(self) -> None:
        """As if by kill -9: what is in memory is lost; files stay as they are, and the lock is free."""
        for thread in (self.tier._reader, self.tier._writer):
            assert thread.close(60.0)
        self.tier.store.close()


def ids(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


_count = iter(range(1 << 30))


def ask(prompt: list[int], **more: Any) -> TokenizedReq:
    return make_req(f"r{next(_count)}", prompt, **more)


def fill(folder: Path, *prompts: list[int], **more: Any) -> None:
    """Has the folder hold the prompts, and some 8 tokens of each answer."""
    server = Server(folder, **more)
    server.ask(*(ask(prompt) for prompt in prompts))
    server.stop()


def leave(server: Server, path: Int32Array, salt: Salt) -> None:
    """Has the tree hold a prefix."""
    memory, worker = server.harness.scheduler.memory, server.harness.worker
    hold = memory.open(memory.tree.match_prefix(path, salt), salt)
    assert hold is not None and memory.grow(hold, len(path))
    slots = memory.rows.table[hold.row, : len(path)]
    worker.tokens[slots], worker.places[slots] = path, np.arange(len(path))
    hold.kv_len = len(path)
    memory.close(hold, path)


def stored_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix in (".idx", ".kv"))


def run_and_restart(open_server: Callable[[random.Random], Server], rng: random.Random) -> None:
    """Two servers one after the other over one folder: prompts with common stems, aborts, and any end."""
    stems = [ids(rng.randrange(20, 200), rng.randrange(1 << 32)) for _ in range(4)]
    for _ in range(2):
        server = open_server(rng)
        reqs, gone = [], set()
        for _ in range(16):
            stem = rng.choice(stems)
            prompt = stem[: rng.randrange(1, len(stem) + 1)] + ids(rng.randrange(0, 90), rng.randrange(6))
            reqs.append(ask(prompt, max_new_tokens=rng.randrange(1, 30), cache_salt=rng.choice([None, "a"])))
        for req in reqs:
            server.harness.put(req)
            for _ in range(rng.randrange(4)):
                server.harness.step()
            if rng.random() < 0.2:
                victim = rng.choice(reqs)
                server.harness.put(AbortReq(victim.rid))
                gone.add(victim.rid)
        server.ask()
        for req in reqs:
            if req.rid not in gone:
                assert server.harness.answers[req.rid].ids == expected_output(req).ids
        assert server.tier.store.num_damaged == 0
        end = rng.choice(["kill", "kill", "stop", "flush"])
        if end == "flush":
            assert server.harness.scheduler.memory.flush() and server.harness.scheduler.check_integrity() == []
        server.kill() if end == "kill" else server.stop()


def hurried(page_size: int, rng: random.Random) -> ScheduleOptions:
    """Short chunks, and perhaps retractions."""
    return ScheduleOptions(page_size=page_size, test_retract_every=rng.choice([0, 3]), chunked_prefill_size=64)
