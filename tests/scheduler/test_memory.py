"""Slots and prefixes always add up, whoever holds them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.scheduler.cache.kv_memory import Holding, KvMemory, PageAllocator
from sglang.srt.scheduler.cache.radix_cache import RadixCache


def ids_of(text: str) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([ord(c) for c in text], dtype=np.int32)


def slots_at(start: int, n: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(start, start + n, dtype=np.int32)


@pytest.mark.parametrize(("slots", "run"), [(0, 1), (15, 16), (33, 16), (16, 0)])
def test_a_pool_is_cut_into_whole_runs(slots: int, run: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        PageAllocator(slots, run)


@given(st.sampled_from([1, 4, 16]), st.lists(st.tuples(st.integers(1, 5), st.integers(0, 15), st.floats(0, 1)), max_size=60))
def test_held_slots_and_free_runs_add_up(run: int, actions: list[tuple[int, int, float]]) -> None:
    allocator = PageAllocator(8 * run * 2, run)
    held: set[int] = set()
    most = -1
    for num_runs, offset, share in actions:
        bases = allocator.alloc(num_runs, offset % run)
        if bases is None:
            assert allocator.num_free_runs < num_runs
        else:
            assert (bases % run == 0).all()
            new = {int(b) + i for b in bases for i in range(run)} - set(range(int(bases[0]), int(bases[0]) + offset % run))
            assert not new & held
            held |= new
            most = max(most, *new)
            assert allocator.num_ever_held == (most // run + 1) * run, "the first so many were held once, no others"
        gone = sorted(held)[: int(len(held) * share)]
        allocator.free(np.array(gone, dtype=np.int32))
        held -= set(gone)
        assert allocator.check(np.array(sorted(held), dtype=np.int32)) == []
    assert allocator.num_held == len(held)


def test_a_slot_is_not_freed_twice() -> None:
    allocator = PageAllocator(32, 16)
    assert allocator.alloc(1) is not None
    allocator.free(slots_at(0, 4))
    with pytest.raises(AssertionError, match="nobody holds"):
        allocator.free(slots_at(3, 1))


def test_the_rest_of_a_run_can_be_claimed_once() -> None:
    allocator = PageAllocator(32, 16)
    allocator.alloc(1)
    allocator.free(slots_at(10, 6))
    assert allocator.claim_after(9)
    assert not allocator.claim_after(9), "taken"
    assert not allocator.claim_after(15), "no rest"
    assert allocator.check(slots_at(0, 16)) == []


def test_check_names_what_is_wrong() -> None:
    allocator = PageAllocator(32, 16)
    allocator.alloc(1)
    assert "no owner" in allocator.check(slots_at(0, 15))[0]
    assert "two owners" in allocator.check(np.append(slots_at(0, 16), np.int32(3)))[0]
    assert "not held" in allocator.check(slots_at(0, 17))[0]


class TreeOracle:
    """Prefixes as a plain set."""

    def __init__(self, page: int) -> None:
        self.page = page
        self.known: dict[str | None, set[tuple[int, ...]]] = {}

    def add(self, ids: list[int], salt: str | None) -> None:
        for n in range(self.page, len(ids) + 1, self.page):
            self.known.setdefault(salt, set()).add(tuple(ids[:n]))

    def match(self, ids: list[int], salt: str | None) -> int:
        lengths = [n for n in range(0, len(ids) + 1, self.page) if tuple(ids[:n]) in self.known.get(salt, set())]
        return max(lengths, default=0)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([1, 2, 4]),
    st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=24), st.sampled_from([None, "a"])), max_size=25),
)
def test_the_tree_matches_what_was_inserted(page: int, inserts: list[tuple[list[int], str | None]]) -> None:
    tree = RadixCache(lambda slots: None, page)
    oracle = TreeOracle(page)
    slot_of: dict[tuple[str | None, tuple[int, ...], int], int] = {}  # salt, ids to the end of the page, position

    def key(ids: list[int], salt: str | None, i: int) -> tuple[str | None, tuple[int, ...], int]:
        return salt, tuple(ids[: i - i % page + page]), i

    next_slot = 0
    for ids, salt in inserts:
        array = np.array(ids, dtype=np.int32)
        expected = oracle.match(ids, salt)
        assert tree.match_len(array, salt)[0] == expected
        match = tree.match_prefix(array, salt)
        assert match.slots.tolist() == [slot_of[key(ids, salt, i)] for i in range(expected)]
        assert match.node.end == expected
        slots = np.concatenate([match.slots, slots_at(next_slot, len(ids) - expected)])
        inserted = tree.insert(array, slots, salt)
        assert inserted.existing_len == expected and inserted.tree_len == len(ids) // page * page
        for i in range(expected, inserted.tree_len):
            slot_of[key(ids, salt, i)] = int(slots[i])
        next_slot += len(ids)
        oracle.add(ids, salt)
        assert tree.check() == []
    assert sorted(tree.slots().tolist()) == sorted(slot_of.values())


def test_eviction_takes_the_least_recently_used_leaf() -> None:
    freed: list[int] = []
    tree = RadixCache(lambda slots: freed.extend(slots.tolist()))
    tree.insert(ids_of("abcd"), slots_at(0, 4))
    tree.insert(ids_of("abxy"), np.array([0, 1, 12, 13], dtype=np.int32))
    tree.insert(ids_of("q"), slots_at(20, 1))
    tree.match_prefix(ids_of("abcd"))
    assert tree.evict(2) == 2 and sorted(freed) == [12, 13]
    assert tree.evict(1) == 1 and freed[2:] == [20]
    assert tree.evict(1) == 1 and freed[3:] == [3], "the end of a leaf goes first, and no more than is wanted"
    assert tree.match_prefix(ids_of("abcd")).slots.tolist() == [0, 1, 2]
    tree.reset()
    assert tree.num_evictable == 0 and len(freed) == 7 and list(tree.nodes()) == []
    assert tree.evict(1) == 0


def test_a_prefix_is_in_use_until_it_is_let_go() -> None:
    freed: list[int] = []
    tree = RadixCache(lambda slots: freed.extend(slots.tolist()))
    long = tree.insert(ids_of("abc"), slots_at(0, 3)).node
    tree.lock(long)
    tree.insert(ids_of("xyz"), slots_at(3, 3))
    tree.unlock(long)
    assert tree.evict(3) == 3 and freed == [3, 4, 5], "the other was looked at later, and let go before"


def test_the_version_tells_when_a_match_may_be_another() -> None:
    tree = RadixCache(lambda slots: None)
    versions = [tree.version]
    tree.insert(ids_of("abcd"), slots_at(0, 4))
    versions.append(tree.version)
    tree.evict(1)
    versions.append(tree.version)
    assert len(set(versions)) == 3
    tree.match_prefix(ids_of("ab"))
    assert tree.version == versions[-1]


def test_a_leaf_is_cut_where_a_run_begins() -> None:
    freed: list[int] = []
    tree = RadixCache(lambda slots: freed.extend(slots.tolist()), page_size=4, run=16)
    tree.insert(np.arange(40, dtype=np.int32), slots_at(0, 40))
    assert tree.evict(1) == 8 and freed == list(range(32, 40))
    assert tree.match_len(np.arange(40, dtype=np.int32))[0] == 32


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=16), st.booleans()), min_size=1, max_size=15))
def test_a_locked_prefix_is_never_evicted(inserts: list[tuple[list[int], bool]]) -> None:
    freed: set[int] = set()
    tree = RadixCache(lambda slots: freed.update(slots.tolist()))
    locked = []
    for at, (ids, lock) in enumerate(inserts):
        array = np.array(ids, dtype=np.int32)
        tree.insert(array, slots_at(at * 100, len(ids)))
        if lock:
            match = tree.match_prefix(array)
            tree.lock(match.node)
            locked.append((array, match))
    while tree.evict(3):
        assert tree.check() == []
    kept: set[int] = set()
    for array, match in locked:
        assert tree.match_prefix(array).slots.tolist() == match.slots.tolist()
        kept.update(match.slots.tolist())
    assert not kept & freed and tree.num_evictable == 0 and tree.num_locked == len(kept)
    for _, match in locked:
        tree.unlock(match.node)
    assert tree.num_locked == 0 and tree.num_evictable == len(kept)
    tree.reset()
    assert list(tree.nodes()) == [] and tree.check() == []


def test_salts_share_nothing_and_leave_nothing() -> None:
    tree = RadixCache(lambda slots: None)
    for i in range(50):
        assert tree.match_len(ids_of("secret"), f"user {i}")[0] == 0
        tree.insert(ids_of("secret"), slots_at(i * 6, 6), f"user {i}")
    tree.reset()
    assert not tree._roots and not tree._heap


# --- requests -----------------------------------------------------------------------------------------------------------------


def open_for(memory: KvMemory, ids: np.ndarray, salt: str | None = None) -> Holding:  # type: ignore[type-arg]
    hold = memory.open(memory.tree.match_prefix(ids[:-1], salt), salt)
    assert hold is not None
    return hold


def test_a_shared_prefix_is_continued_from_the_same_offset_in_another_run() -> None:
    memory = KvMemory(64, 16, 4, 64)
    ids = np.arange(20, dtype=np.int32)
    first = open_for(memory, ids)
    assert memory.grow(first, 20) and first.reserved_len == 32
    first.kv_len = 20
    memory.share(first, ids)
    second = open_for(memory, np.append(ids[:18], [99, 98]).astype(np.int32))
    assert second.kv_len == 18 and memory.grow(second, 20)
    a, b = memory.rows.table[first.row, :20], memory.rows.table[second.row, :20]
    assert a[:18].tolist() == b[:18].tolist() and a[18] // 16 != b[18] // 16
    assert (b % 16 == np.arange(20) % 16).all()
    assert memory.check_integrity() == []
    memory.close(first, ids)
    memory.close(second, np.append(ids[:18], [99]).astype(np.int32)[:18])
    assert memory.check_integrity() == [] and memory.num_used == 0


def test_a_prefix_is_continued_in_its_own_run_when_that_is_free() -> None:
    memory = KvMemory(16, 16, 2, 64)
    ids = np.arange(10, dtype=np.int32)
    hold = open_for(memory, ids)
    memory.grow(hold, 10)
    hold.kv_len = 10
    memory.close(hold, ids)
    longer = np.arange(14, dtype=np.int32)
    again = open_for(memory, longer)
    assert again.kv_len == 10 and memory.grow(again, 14), "the only run there is has room"
    assert memory.rows.table[again.row, :14].tolist() == list(range(14))
    assert not memory.grow(again, 17)
    assert memory.check_integrity() == []


def test_the_last_run_may_reach_beyond_the_context() -> None:
    memory = KvMemory(48, 16, 2, 20)
    ids = np.arange(20, dtype=np.int32)
    hold = open_for(memory, ids)
    assert memory.grow(hold, 20)
    hold.kv_len = 20
    assert memory.check_integrity() == []
    memory.close(hold, ids)
    assert memory.check_integrity() == [] and memory.flush()
    assert memory.allocator.num_free_runs == 3


def test_the_cache_is_not_flushed_under_a_running_request() -> None:
    memory = KvMemory(32, 16, 2, 20)
    hold = open_for(memory, ids_of("abc"))
    assert not memory.flush()
    memory.close(hold, ids_of(""))
    assert memory.flush()


def test_growing_stops_where_memory_ends() -> None:
    memory = KvMemory(64, 16, 2, 200)
    hold = open_for(memory, ids_of("x" * 100))
    assert not memory.grow(hold, 100) and hold.reserved_len == 0
    assert memory.grow_far(hold, 100) == 64
    assert memory.open(memory.tree.match_prefix(ids_of("")), None) is not None
    assert memory.open(memory.tree.match_prefix(ids_of("")), None) is None, "no row left"
