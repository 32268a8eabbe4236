"""The tier in host memory, alone and in front of the disk: what the pool drops comes back to the bit, within the memory that it has.

The toy model is the oracle (toy.py); `Server` of test_disk_cache.py checks every answer.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.scheduler.cache.disk.host_store import HostRecord, HostStore
from sglang.srt.scheduler.cache.disk.records import Entry, RecordFormat, chain_keys
from sglang.srt.scheduler.cache.disk.tier import WritePolicy
from sglang.srt.scheduler.cache.disk.transfers import make_entry
from tests.scheduler.disk_server import Server, ask, ids
from tests.scheduler.toy import ToyWorker

POLICIES: tuple[WritePolicy, ...] = ("write_through", "write_through_selective", "write_back")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def small() -> ToyWorker:
    """A pool of 20 runs."""
    return ToyWorker(num_slots=320)


PROMPTS = [ids(100, seed) for seed in range(1, 7)]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_pool_drops_comes_back(folder: Path, policy: WritePolicy) -> None:
    server = Server(folder, small(), host_records=64, disk=False, policy=policy)
    for prompt in PROMPTS:
        assert server.cached(ask(prompt)) < 16
    assert server.harness.scheduler.memory.tree.match_len(np.array(PROMPTS[0], np.int32), None)[0] < 16
    found = [server.cached(ask(prompt)) for prompt in PROMPTS]
    assert min(found) >= 96
    stats = server.stats
    assert stats.cached_tokens["host"] >= 3 * 95 and stats.disk["host_records"] <= 64
    assert not folder.exists()
    server.stop()


RUN_BYTES = 4096
PATH = np.arange(16 * 64, dtype=np.int32)


def filled(num_records: int) -> tuple[HostStore, list[bytes], list[tuple[Entry, Any]]]:
    """A store with so much room, and 64 records, the payload of each its number."""
    root = b"r" * 32
    keys, entries = chain_keys(root, PATH, 16), []
    for i, key in enumerate(keys):
        payload = np.full(RUN_BYTES, i, np.uint8)
        entries.append((make_entry(key, keys[i - 1] if i else root, PATH[16 * i : 16 * i + 16], payload), payload))
    return HostStore(RecordFormat(b"f" * 32, 16, RUN_BYTES), np.empty(num_records * RUN_BYTES, np.uint8)), keys, entries


@pytest.mark.parametrize(("policy", "num"), [("write_through", 6), ("write_through_selective", 0), ("write_back", 0)])
def test_when_it_is_written(folder: Path, policy: WritePolicy, num: int) -> None:
    server = Server(folder, host_records=64, disk=False, policy=policy)
    prompt = ids(96, 1)
    server.ask(ask(prompt, max_new_tokens=1))
    assert server.stats.disk["host_records"] == num
    server.ask(ask([*prompt, 5], max_new_tokens=1))
    assert server.stats.disk["host_records"] == (0 if policy == "write_back" else 6)
    server.stop()


def test_the_least_recently_used_makes_room() -> None:
    store, keys, entries = filled(3)
    for i in (0, 1, 2):
        assert store.append(*entries[i])
    out = np.full(RUN_BYTES, 7, np.uint8)
    assert store.read(HostRecord(entries[0][0]), out) and (out == 0).all()
    store.append(*entries[3])
    assert [store.has(keys[i]) for i in range(4)] == [True, False, True, True] and len(store) == 3
    assert not store.read(HostRecord(entries[1][0]), out)


@pytest.mark.parametrize("policy", POLICIES)
def test_in_front_of_the_disk(folder: Path, policy: WritePolicy) -> None:
    """More than host memory has, in order ended: the disk has all of it, and what is read from it is in host memory from then on."""
    server = Server(folder, small(), host_records=16, policy=policy)
    for prompt in PROMPTS:
        server.ask(ask(prompt))
    assert min(server.cached(ask(prompt)) for prompt in PROMPTS) >= 96
    server.stop()
    again = Server(folder, host_records=64, policy=policy)
    assert again.stats.disk["host_records"] == 0
    assert min(again.cached(ask(prompt)) for prompt in PROMPTS) >= 96
    assert again.stats.cached_tokens["disk"] >= 6 * 95 and again.stats.disk["host_records"] >= 6 * 6
    again.stop()


def test_the_disk_is_as_good_as_ever_where_there_is_no_host_tier(folder: Path) -> None:
    """One that is killed leaves on disk what was written through, and nothing else."""
    for policy, found in (("write_through", 96), ("write_back", 0)):
        server = Server(folder / policy, host_records=64, policy=policy)  # type: ignore[arg-type]
        server.ask(ask(PROMPTS[0], max_new_tokens=1))
        server.kill()
        assert Server(folder / policy).cached(ask(PROMPTS[0])) == found


def test_no_room_at_all_is_served_without(folder: Path) -> None:
    server = Server(folder, small(), host_records=0, disk=False)
    for prompt in PROMPTS * 2:
        server.ask(ask(prompt))
    assert server.stats.disk["host_records"] == 0
    server.stop()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), room=st.integers(1, 40), policy=st.sampled_from(POLICIES), disk=st.booleans())
def test_answers_and_slots_whatever_happens(tmp_path: Path, seed: int, room: int, policy: WritePolicy, disk: bool) -> None:
    rng = random.Random(seed)
    server = Server(tmp_path / str(seed), small(), host_records=room, disk=disk, policy=policy)
    for _ in range(6):
        reqs = [ask(rng.choice(PROMPTS)[: rng.randrange(1, 100)], max_new_tokens=rng.randrange(1, 9)) for _ in range(3)]
        server.ask(*reqs)  # and every answer is the oracle's
    assert server.stats.disk["host_records"] <= room
    server.stop()


def test_two_threads_read_and_write(folder: Path) -> None:
    """What is read is what was written under the key, while others drive it out."""
    store, keys, entries = filled(8)
    wrong: list[Any] = []

    def write() -> None:
        for n in range(3000):
            store.append(*entries[n % 64])

    def read() -> None:
        out = np.full(RUN_BYTES, 7, np.uint8)
        for n in range(3000):
            for record in store.find(keys, PATH, n % 64)[:2]:
                i = keys.index(record.entry.key)
                if store.read(record, out) and not (out == i).all():
                    wrong.append(i)

    threads = [threading.Thread(target=target) for target in (write, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and len(store) == 8
