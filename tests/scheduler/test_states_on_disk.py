"""States of recurrent layers in the cache on disk: found again at their own position, only whole, and never another's.

The toy's state is the list of ids that it has gone through (test_states.py): one of another text or position, or one put together
wrongly, fails at the next step."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import ScheduleOptions
from sglang.srt.forward_batch import Int32Array
from sglang.srt.scheduler.cache.disk.archive import export_records, fingerprint_folders, import_records
from sglang.srt.scheduler.cache.disk.names import Prefix
from sglang.srt.scheduler.cache.disk.records import NO_TOKEN, Entry, chain_keys, payload_crc, state_keys
from sglang.srt.scheduler.cache.disk.store import DiskRoom, RecordStore
from tests.scheduler.disk_server import ROOM, Server, ask, hurried, ids, make_form, run_and_restart, stored_files
from tests.scheduler.test_states import StatefulWorker
from tests.scheduler.toy import ToyRuns

Bytes = npt.NDArray[np.uint8]


class StateArray:
    """A list of states that lie in memory: each its length and its ids."""

    def __init__(self, num: int, width: int) -> None:
        self.memory: Int32Array = np.zeros((num, width + 1), np.int32)

    def __getitem__(self, slot: int) -> list[int]:
        row = self.memory[slot]
        state: list[int] = row[1 : 1 + int(row[0])].tolist()
        return state

    def __setitem__(self, slot: int, state: list[int]) -> None:
        self.memory[slot, 0] = len(state)
        self.memory[slot, 1 : 1 + len(state)] = state


class ToyStates:
    """forward_batch.StateBytes."""

    layout = "toy states"

    def __init__(self, states: StateArray) -> None:
        self._memory: Bytes = states.memory.view(np.uint8)
        self.num_bytes = self._memory.shape[1]

    def read(self, slot: int, start: int, out: Bytes) -> None:
        part = self._memory[slot, start : start + len(out)]
        out[: len(part)], out[len(part) :] = part, 0

    def write(self, slot: int, start: int, data: Bytes) -> None:
        end = min(start + len(data), self.num_bytes)
        self._memory[slot, start:end] = data[: end - start]


def serve(folder: Path, num_states: int = 32, options: ScheduleOptions | None = None, **more: Any) -> Server:
    sizes = {name: more.pop(name) for name in ("num_slots", "max_running") if name in more}
    worker = StatefulWorker(num_states, **sizes)
    states = StateArray(num_states, worker.info.context_len)
    worker.states = states  # type: ignore[assignment]
    return Server(folder, worker, options, states=ToyStates(states), **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# --- what comes back ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [65, 70, 80, 81, 200])
def test_a_restart_finds_the_state_before_the_last_token(folder: Path, length: int) -> None:
    prompt = ids(length)
    server = serve(folder)
    server.ask(ask(prompt))
    server.stop()
    server = serve(folder)
    assert server.cached(ask(prompt)) == length - 1
    assert server.stats.cached_tokens == {"memory": 0, "disk": length - 1}
    assert server.cached(ask(prompt)) == length - 1
    assert server.stats.cached_tokens == {"memory": length - 1, "disk": length - 1}
    server.kill()


def test_the_next_turn_of_a_chat_goes_on_after_a_restart(folder: Path) -> None:
    prompt = ids(100)
    server = serve(folder)
    (answer,) = server.ask(ask(prompt, max_new_tokens=20, ignore_eos=True))
    server.stop()
    server = serve(folder)
    assert server.cached(ask([*prompt, *answer.ids, *ids(30, 1)])) == 119, "the last token was never a row"
    server.kill()


def test_a_killed_server_leaves_what_was_asked_for_twice(folder: Path) -> None:
    once, twice = ids(150, 1), ids(150, 2)
    server = serve(folder)
    server.ask(ask(once))
    assert [server.cached(ask(twice)) for _ in range(2)] == [0, 149]
    server.kill()
    after = serve(folder)
    assert after.cached(ask(twice)) == 149
    assert after.cached(ask(once)) == 0
    after.kill()


def test_what_is_evicted_comes_back(folder: Path) -> None:
    """States make room for each other, and slots too: both have been written by then."""
    server = serve(folder, num_states=8, num_slots=512)
    prompts = [ids(150, seed) for seed in range(8)]
    for prompt in prompts:
        server.ask(ask(prompt))
    assert [server.cached(ask(prompt)) for prompt in prompts[:4]] == [149] * 4
    assert server.stats.cached_tokens["disk"] >= 149
    server.kill()


def test_a_state_comes_alone_where_the_tree_has_keys_and_values(folder: Path) -> None:
    prompt = ids(150)
    server = serve(folder, num_states=8)
    for _ in range(2):
        server.ask(ask(prompt))
    for seed in range(1, 8):
        server.ask(ask(ids(40, seed)))
    memory, before = server.harness.scheduler.memory, server.tier.num_read
    reached, node = memory.tree.match_len(np.array(prompt, np.int32))
    assert memory.states is not None and memory.states.deepest_at(node, reached) == 0 and reached == 150
    assert server.cached(ask(prompt)) == 149
    assert server.tier.num_read - before == -(-server.tier._states.memory.num_bytes // 256)  # type: ignore[union-attr]
    server.kill()


def test_the_deepest_of_several_states_is_taken(folder: Path) -> None:
    stem = ids(100)
    server = serve(folder)
    for end in (50, 70, 71, 90, 100):
        server.ask(ask(stem[:end]))
    server.stop()
    server = serve(folder)
    found = [server.cached(ask(stem[:end] + ids(20, end))) for end in (70, 72, 95, 60)]
    assert found == [70, 70, 89, 49]
    server.kill()


def test_a_load_that_others_wait_for_is_shared(folder: Path) -> None:
    prompt = ids(150)
    server = serve(folder)
    server.ask(ask(prompt))
    server.stop()
    server = serve(folder)
    answers = server.ask(*(ask([*prompt, *ids(9, seed)]) for seed in range(5)))
    assert all(answer.last.cached_len >= 149 for answer in answers)
    server.kill()


def test_pages_of_several_tokens(folder: Path) -> None:
    prompt, options = ids(150), ScheduleOptions(page_size=24)
    server = serve(folder, options=options)
    server.ask(ask(prompt))
    server.stop()
    server = serve(folder, options=options)
    assert server.cached(ask(prompt)) == 144
    server.kill()
    other = serve(folder, options=ScheduleOptions(page_size=32))
    assert other.cached(ask(prompt)) == 0, "no page of these ends at a state"
    other.kill()


# --- what must not come back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["salt", "tenant", "fingerprint", "adapter"])
def test_what_is_another_s_is_never_read(folder: Path, change: str) -> None:
    prompt = ids(100)
    server = serve(folder)
    server.ask(ask(prompt, cache_salt="a"))
    server.stop()
    other = serve(folder, fingerprint="b" if change == "fingerprint" else "same", is_shared=change == "tenant")
    if change == "adapter":
        other.tier.names.adapter_of = lambda uid: "digest"
        assert other.tier.begin(np.array(prompt, np.int32), (1, "a")) is None
    else:
        assert other.cached(ask(prompt, cache_salt="b" if change == "salt" else "a")) == 0
    assert other.tier.num_read == 0
    other.kill()


def test_keys_of_states_are_of_all_that_went_before() -> None:
    """Of the text, of where in it they stand, of images among the last tokens, and never those of keys and values."""
    text: Int32Array = np.array(ids(40), np.int32)
    keys = chain_keys(bytes(32), text, 16)
    found = dict.fromkeys(keys, 0)
    for end in range(33, 41):
        tail = np.full(16, NO_TOKEN, np.int32)
        tail[: end - 32] = text[32:end]
        for digests in ({}, {32: b"a" * 40}, {32: b"b" * 40}):
            extra = Prefix(bytes(32), text, digests).digests_in(32, end)
            found |= dict.fromkeys(state_keys(keys[1], tail.tobytes(), 3, extra), end)
            found |= dict.fromkeys(state_keys(keys[0], tail.tobytes(), 3, extra), end)
    assert len(found) == 2 + 8 * 3 * 2 * 3


def test_a_flipped_byte_is_a_miss_and_never_an_answer(folder: Path, tmp_path: Path) -> None:
    prompt, rng = ids(100), random.Random(3)
    server = serve(folder)
    server.ask(ask(prompt))
    server.stop()
    for suffix in (".idx", ".kv"):
        (path,) = [path for path in stored_files(folder) if path.suffix == suffix]
        data = path.read_bytes()
        for i, at in enumerate([0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(10))]):
            copy = shutil.copytree(folder, tmp_path / f"{suffix}{i}")
            flipped = bytes([data[at] ^ (1 << rng.randrange(8))])
            (copy / path.relative_to(folder)).write_bytes(data[:at] + flipped + data[at + 1 :])
            server = serve(copy)
            cached = server.cached(ask(prompt))
            assert cached in (0, 99)
            assert server.tier.store.num_damaged == 1 or cached == 99  # type: ignore[union-attr]
            server.ask(ask(prompt))
            server.kill()


def test_a_state_of_which_a_part_is_missing_is_none(folder: Path, tmp_path: Path) -> None:
    """As after a crash in the middle, or when an old segment has gone."""
    prompt = ids(100)
    server = serve(folder)
    server.ask(ask(prompt))
    server.ask(ask(prompt))
    server.kill()
    (index,) = [path for path in stored_files(folder) if path.suffix == ".idx"]
    form = make_form(ToyRuns(StatefulWorker(4)))
    sizes = range(index.stat().st_size, 0, -form.entry_bytes)
    for num, size in enumerate(sizes):
        copy = shutil.copytree(folder, tmp_path / f"cut{num}")
        with (copy / index.relative_to(folder)).open("r+b") as file:
            file.truncate(size)
        server = serve(copy)
        assert server.cached(ask(prompt)) == (99 if num == 0 else 0)
        server.stop()
        after = serve(copy)
        assert after.cached(ask(prompt)) == 99
        after.kill()


def test_entries_that_somebody_made_up(folder: Path) -> None:
    """Of states at every place after every record, without an end, of no tokens: they are right by their checks, and lead nowhere."""
    prompt = ids(100)
    server = serve(folder)
    server.ask(ask(prompt))
    server.stop()
    form, rng = make_form(ToyRuns(StatefulWorker(4))), random.Random(1)
    store = RecordStore(folder, form, ROOM, {})
    keys = [key for key, record in store._index.items() if not record.entry.is_state]
    payload = np.zeros(form.payload_bytes, np.uint8)
    for parent in keys:
        for length in range(16):
            tail = np.full(16, NO_TOKEN, np.int32)
            tail[:length] = rng.choices(range(256), k=length)
            key = rng.choice([rng.randbytes(32), state_keys(parent, tail.tobytes(), 1)[0]])
            store.append(Entry(key, parent, tail.tobytes(), payload_crc(key, payload)), payload)
    store.close()
    server = serve(folder)
    assert server.cached(ask(prompt)) == 99
    assert server.cached(ask([*prompt[:50], *ids(40, 8)])) in (0, 50)
    server.kill()


# --- memory ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    states=st.sampled_from([4, 5, 9, 40]),
    slots=st.sampled_from([512, 1024]),
    page=st.sampled_from([1, 1, 16, 24]),
)
def test_slots_and_states_add_up_whatever_happens(folder: Path, seed: int, states: int, slots: int, page: int) -> None:
    """Schedulers with little memory over one folder: prompts with common stems, aborts, evictions, retractions, restarts and kills."""
    shutil.rmtree(folder, ignore_errors=True)

    def open_server(rng: random.Random) -> Server:
        room = DiskRoom(rng.choice([60_000, 400_000]), least_free=0)
        return serve(folder, states, hurried(page, rng), num_slots=slots, max_running=6, room=room)

    run_and_restart(open_server, random.Random(seed))


def test_states_that_are_too_large_to_be_copied_between_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written when they are found again, and at the end."""
    monkeypatch.setattr("sglang.srt.scheduler.cache.disk.tier.STEP_BYTES", 1000)
    server = serve(folder, num_states=6)
    for seed in range(8):
        server.ask(ask(ids(100, seed)))
    assert len(server.tier.store) == 0
    server.ask(ask(ids(100, 7)))
    assert len(server.tier.store) > 0
    server.stop()
    after = serve(folder)
    assert after.cached(ask(ids(100, 7))) == 99
    after.kill()


# --- shipping -------------------------------------------------------------------------------------------------------------------


def test_states_are_exported_and_imported(folder: Path, tmp_path: Path) -> None:
    prompt = ids(100)
    server = serve(folder)
    server.ask(ask(prompt))
    server.stop()
    (source,) = fingerprint_folders(folder, None)
    export_records(source, tmp_path / "archive")
    fresh = tmp_path / "fresh"
    imported = import_records(tmp_path / "archive", fresh, DiskRoom(1 << 30, least_free=0))
    assert imported.num_new == imported.head.num_records > 100 // 16
    after = serve(fresh)
    assert after.cached(ask(prompt)) == 99
    after.kill()
