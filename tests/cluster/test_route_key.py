"""What the choice of a replica reads of a request, and replicas that come and go."""

from __future__ import annotations

import json

from sglang.cluster.metrics import labelled_metrics
from sglang.cluster.policy import PrefixPolicy
from sglang.cluster.route_key import BLOCK_BYTES, MAX_BLOCKS, RouteKey, route_key


def key_of(**body: object) -> RouteKey:
    return route_key([json.dumps(body).encode()])


def test_prompts_with_a_beginning_in_common_have_blocks_in_common() -> None:
    first = [{"role": "system", "content": "x y " * 200}, {"role": "user", "content": "one " * 100}]
    second = [first[0], {"role": "user", "content": "two " * 100}]
    a, b = key_of(messages=first, temperature=0.5), key_of(temperature=1, messages=second, max_tokens=7)
    assert a.blocks[:3] == b.blocks[:3] and a.blocks[-1] != b.blocks[-1]
    assert (b.max_new_tokens, a.prompt_len > 200) == (7, True)
    for more in (
        {"model": "other"},
        {"lora_path": "a"},
        {"cache_salt": "s"},
        {"tools": [{"type": "function"}]},
        {"system": "t"},
    ):
        assert not set(key_of(messages=first, **more).blocks) & set(a.blocks), more


def test_short_prompts_that_come_again_are_known() -> None:
    asked = key_of(messages=[{"role": "user", "content": "a b"}])
    assert len(asked.blocks) == 1 and asked.blocks == key_of(messages=[{"role": "user", "content": "a b"}], seed=3).blocks
    assert asked.blocks != key_of(messages=[{"role": "user", "content": "a c"}]).blocks
    policy = PrefixPolicy(2, 10_000)
    policy.send_to(1, "r", asked.blocks, asked.prompt_len, 10)
    policy.end("r")
    assert [policy.rank(asked.blocks, asked.prompt_len)[0] for _ in range(3)] == [1, 1, 1]


def test_lengths_and_bodies_that_are_no_request() -> None:
    assert key_of(text="a", sampling_params={"max_new_tokens": 9}).max_new_tokens == 9
    for wrong in (
        {"max_tokens": "many"},
        {"max_tokens": -5},
        {"sampling_params": [1]},
        {"max_tokens": 1e30},
        {"max_tokens": None},
    ):
        assert 1 <= key_of(text="a", **wrong).max_new_tokens <= 1 << 20
    for body in (b"", b"{", b"[]", b"3", b"\xff", b"[" * 5000, b'{"a": \xff}'):
        assert route_key([body]) == RouteKey()
    assert len(key_of(text="x" * 2_000_000).blocks) == MAX_BLOCKS


def test_long_bodies_are_known_by_their_beginning() -> None:
    long = json.dumps({"model": "m", "messages": [{"role": "user", "content": "one two " * 200_000}]}).encode()
    again = [long[:70_000], bytearray(long[70_000:900_000]), long[900_000:]]
    assert route_key([long]).blocks == route_key(again).blocks and len(route_key(again).blocks) == MAX_BLOCKS
    other = route_key([long[:300_000], b"x" * 700_000])
    shared = sum(a == b for a, b in zip(other.blocks, route_key(again).blocks, strict=True))
    assert shared == 300_000 // BLOCK_BYTES and other.prompt_len > 10_000


def test_replicas_come_and_go() -> None:
    policy = PrefixPolicy(0, 10_000)
    blocks = key_of(text="a b c " * 500).blocks
    assert policy.rank(blocks, 700) == []
    first, second = policy.add(), policy.add()
    policy.send_to(second, "r", blocks, 700, 10)
    policy.end("r")
    assert policy.rank(blocks, 700)[0] == second, "where its prefix is"
    policy.lost(second)
    assert policy.rank(blocks, 700) == [first]
    assert policy.add() == second and set(policy.rank(blocks, 700)) == {first, second}, (
        "in the place of the lost one, and empty"
    )


def test_samples_of_a_replica_bear_its_name() -> None:
    text = '# HELP a b\n# TYPE a counter\na{x="1"} 2\nb 3.5\n'
    assert labelled_metrics(text, "r1") == '# HELP a b\n# TYPE a counter\na{replica="r1",x="1"} 2\nb{replica="r1"} 3.5\n'
