"""Which replica gets a request: properties of the policy and of its memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.cluster.policy import BLOCK_IDS, PrefixPolicy, block_hashes


def blocks_of(name: str, count: int, seed: tuple[bytes, ...] = ()) -> list[bytes]:
    return block_hashes(seed, (f"{name}{i}".encode() for i in range(count)))


def send(policy: PrefixPolicy, name: object, blocks: list[bytes], max_new: int = 64) -> int:
    return policy.send(name, blocks, len(blocks) * BLOCK_IDS + 5, max_new)


def test_hashes_stand_for_all_before_them_and_for_the_seed() -> None:
    one, other = block_hashes([], [b"a", b"b"]), block_hashes([], [b"c", b"b"])
    assert one[1] != other[1] and one == block_hashes([], [b"a", b"b", b"d"])[:2]
    seeds = [(), (b"",), (b"x",), (b"", b"x"), (b"x", b""), (b"xy",), (b"x", b"y")]
    assert len({block_hashes(seed, [b"a"])[0] for seed in seeds}) == len(seeds)


def test_a_prefix_goes_where_it_is() -> None:
    policy = PrefixPolicy(4, 100_000)
    homes = {name: send(policy, name, blocks_of(name, 30)) for name in "abcd"}
    assert sorted(homes.values()) == [0, 1, 2, 3]
    for turn in range(3):
        for name, home in homes.items():
            assert send(policy, (name, turn), blocks_of(name, 30) + blocks_of(f"{name}{turn}", 1)) == home


def test_a_queue_that_costs_more_than_the_prefix_sends_requests_elsewhere() -> None:
    policy = PrefixPolicy(2, 1_000_000)
    homes = [send(policy, i, blocks_of("a", 10), 256) for i in range(200)]
    assert 60 < homes.count(0) < 140, "both work, since both have the prefix by then"
    assert homes[1] == homes[0]


def test_a_prefix_that_half_of_all_requests_have_is_on_many_replicas() -> None:
    """The others stay where they are."""
    policy, running = PrefixPolicy(8, 1_000_000), 160
    homes: dict[str, set[int]] = {}
    largest = 0.0
    for i in range(1600):
        name = "hot" if i % 2 else f"rare {i // 2 % 16}"
        home = send(policy, i, blocks_of(name, 30) + blocks_of(f"own {i}", 1))
        if i >= running:
            policy.progress(i - running, 100)
            policy.end(i - running)
            homes.setdefault(name, set()).add(home)
            largest = max(largest, policy._replicas[home].num_requests * 8 / running if i > 3 * running else 0.0)
    assert largest < 1.5 and len(homes["hot"]) >= 4
    assert sum(len(found) for name, found in homes.items() if name != "hot") <= 20


def test_prompts_that_nobody_knows_are_spread_evenly() -> None:
    policy = PrefixPolicy(8, 100_000)
    homes = [send(policy, i, blocks_of(str(i), 3)) for i in range(800)]
    assert [homes.count(i) for i in range(8)] == [100] * 8


def test_a_replica_that_is_lost_gives_its_requests_back_and_forgets() -> None:
    policy = PrefixPolicy(2, 100_000)
    home = send(policy, "a", blocks_of("a", 30))
    assert policy.lost(home) == ["a"] and policy.replica_of("a") is None
    assert send(policy, "a", blocks_of("a", 30)) == 1 - home
    policy.back(home)
    policy.end("a")
    assert send(policy, "b", blocks_of("a", 30)) == 1 - home
    policy.lost(0)
    policy.lost(1)
    with pytest.raises(LookupError):
        send(policy, "c", [])


CHAINS = {name: blocks_of(name, 30) for name in "abcdef"}
BEFORE = {block: chain[:i] for chain in CHAINS.values() for i, block in enumerate(chain)}


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_work_is_never_negative_and_is_gone_when_all_have_ended(seed: int, num_replicas: int) -> None:
    rng = random.Random(seed)
    policy = PrefixPolicy(num_replicas, BLOCK_IDS * 20)
    open_ones: list[int] = []
    for i in range(120):
        what = rng.random()
        if what < 0.5:
            send(policy, i, CHAINS[rng.choice("abcdef")][: rng.randrange(30)], rng.choice([0, 1, 50, 4000]))
            open_ones.append(i)
        elif what < 0.8 and open_ones:
            policy.progress(rng.choice(open_ones), rng.randrange(40))
        elif open_ones:
            policy.end(open_ones.pop(rng.randrange(len(open_ones))))
        for replica in policy._replicas:
            assert replica.prefill >= 0 and replica.decode > -1e-6 and len(replica.blocks) <= 20
    for replica in policy._replicas:  # what is remembered of a prompt is its beginning
        assert all(before in replica.blocks for block in replica.blocks for before in BEFORE[block])
    for name in open_ones:
        policy.end(name)
    assert all(r.prefill == 0 and r.decode == 0 and r.num_requests == 0 for r in policy._replicas)
