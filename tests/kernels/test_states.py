"""Ops on states of recurrent layers, against the reference: several requests, copies on the way, odd sizes; and the same bits however a
text is cut into steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.kernels.states import StateMeta

from .support import close, ints, same_bits, tensor

REFERENCE = ReferenceOps()
ROWS, SLOTS = 23, 8
Step = list[tuple[int, int, int, list[tuple[int, int]]]]
"""of each request: rows, source, target, (rows before a copy, its slot)"""


def meta_of(step: Step) -> StateMeta:
    lens = [each[0] for each in step]
    saves = [each[3] for each in step]
    pairs = [pair for each in saves for pair in each]
    arrays = [lens, [each[1] for each in step], [each[2] for each in step]]
    starts = np.cumsum([0, *lens[:-1]])
    return StateMeta(
        ints(len(step)), ints(*starts), *(ints(*a) for a in arrays), ints(*np.cumsum([0, *map(len, saves)])),
        ints(*(at for at, _ in pairs)), ints(*(slot for _, slot in pairs)),
    )  # fmt: skip


def random(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


def state_space(heads: int, groups: int, state_dim: int, head_dim: int) -> Callable[..., tuple[Any, Any]]:
    width = heads * head_dim + 2 * groups * state_dim
    rng = np.random.default_rng(0)
    xbc, gates, state = (
        random(rng, ROWS, width + 3),
        random(rng, ROWS, 2 * heads),
        random(rng, SLOTS, heads, state_dim, head_dim),
    )
    vectors = [-np.exp(random(rng, heads)), random(rng, heads), random(rng, heads)]

    def run(ops: Any, steps: list[tuple[slice, Step]]) -> tuple[Any, Any]:
        states, out, dts = state.copy(), np.zeros((ROWS, heads * head_dim), np.float32), gates.copy()
        for rows, step in steps:
            n = ints(sum(each[0] for each in step))
            arguments = (xbc[rows], dts[rows], *vectors, states, out[rows], meta_of(step), n)
            ops.state_space(*arguments, num_groups=groups, step_limits=(0.1, 2.0))
        return out, states

    return run


def selective_scan(channels: int, state_dim: int) -> Callable[..., tuple[Any, Any]]:
    rng = np.random.default_rng(1)
    x, z, bc, dt = (random(rng, ROWS, n) for n in (channels, channels, 2 * state_dim, channels))
    state, decay = random(rng, SLOTS, state_dim, channels), -np.exp(random(rng, state_dim, channels))
    bias, skip = random(rng, channels), random(rng, channels)

    def run(ops: Any, steps: list[tuple[slice, Step]]) -> tuple[Any, Any]:
        states, found, eye = state.copy(), np.zeros((ROWS, channels), np.float32), tensor(rng, "f32", channels, channels)
        eye.data[:] = np.eye(channels)
        weight = ops.pack([eye])
        for rows, step in steps:
            n, act = ints(sum(each[0] for each in step)), ops.activation(ROWS, [weight])
            ops.selective_scan(x[rows], dt[rows].copy(), bc[rows], z[rows], decay, bias, skip, states, act, meta_of(step), n)
            ops.linear(weight, act, found[rows], n)
        return found, states

    return run


def delta_rule(k_heads: int, v_heads: int, k_dim: int, v_dim: int, turns: bool) -> Callable[..., tuple[Any, Any]]:
    rng = np.random.default_rng(2)
    qkv, gates = random(rng, ROWS, 2 * k_heads * k_dim + v_heads * v_dim), random(rng, ROWS, 2 * v_heads)
    state, decay, bias = random(rng, SLOTS, v_heads, k_dim, v_dim), -np.exp(random(rng, v_heads)), random(rng, v_heads)

    def run(ops: Any, steps: list[tuple[slice, Step]]) -> tuple[Any, Any]:
        states, out = state.copy(), np.zeros((ROWS, v_heads * v_dim), np.float32)
        for rows, step in steps:
            arguments = (qkv[rows].copy(), gates[rows].copy(), decay, bias, states, out[rows], meta_of(step))
            ops.delta_rule(*arguments, ints(sum(each[0] for each in step)), num_k_heads=k_heads, turns=turns)
        return out, states

    return run


OPS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "space": state_space(6, 3, 20, 40),
    "space of one head": state_space(1, 1, 1, 1),
    "space as published": state_space(2, 1, 128, 64),
    "scan": selective_scan(70, 7),
    "scan of 16": selective_scan(32, 16),
    "delta": delta_rule(2, 6, 20, 40, False),
    "delta in turns": delta_rule(2, 6, 20, 40, True),
}
TOGETHER: Step = [(14, -1, 1, [(1, 2), (9, 3)]), (0, 5, 5, []), (9, 4, 4, [(9, 6)])]
CUT: list[tuple[slice, Step]] = [
    (slice(0, 5), [(5, -1, 1, [(1, 2)])]),
    (slice(5, 14), [(9, 1, 1, [(4, 3)])]),
    (slice(14, 23), [(9, 4, 4, [(9, 6)])]),
]


@pytest.mark.parametrize("name", OPS)
def test_as_the_reference(ops: Any, name: str) -> None:
    run = OPS[name]
    (out, states), (want, want_states) = (run(each, [(slice(0, ROWS), TOGETHER)]) for each in (ops, REFERENCE))
    close(out, want, 2e-5)
    close(states, want_states, 2e-5)
    same_bits(states[[0, 5, 7]], want_states[[0, 5, 7]])


@pytest.mark.parametrize("name", OPS)
def test_however_a_text_is_cut(ops: Any, more_threads: list[Any], name: str) -> None:
    whole, states = OPS[name](ops, [(slice(0, ROWS), TOGETHER)])
    for each in more_threads:
        out, found = OPS[name](each, CUT)
        same_bits(out, whole)
        same_bits(found, states)


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize(("width", "group", "wide"), [(120, 40, True), (120, 40, False), (96, 96, True), (70, 7, True)])
def test_gated_norm(ops: Any, width: int, group: int, wide: bool, gate_first: bool) -> None:
    rng = np.random.default_rng(3)
    x, gate, weight = random(rng, 5, width), random(rng, 5, width), random(rng, width if wide else group)
    eye = tensor(rng, "f32", width, width)
    eye.data[:] = np.eye(width)
    found = []
    for each in (ops, REFERENCE):
        packed, out = each.pack([eye]), np.zeros((5, width), np.float32)
        act = each.activation(5, [packed])
        each.gated_norm(x, gate, weight, act, ints(5), eps=1e-5, group=group, gate_first=gate_first)
        each.linear(packed, act, out, ints(5))
        found.append(out)
    close(found[0], found[1], 2e-6)


def test_refused_arguments(ops: Any) -> None:
    rng = np.random.default_rng(0)
    meta, n = meta_of([(2, -1, 0, [])]), ints(2)
    good = {
        "xbc": random(rng, 2, 48), "gates": random(rng, 2, 4), "decay": random(rng, 2), "dt_bias": random(rng, 2), "skip": random(rng, 2),
        "state": random(rng, 2, 2, 8, 16), "out": random(rng, 2, 32),
    }  # fmt: skip

    def call(groups: int = 1, limits: tuple[float, float] = (0.0, 1.0), **changed: Any) -> None:
        ops.state_space(*{**good, **changed}.values(), meta, n, num_groups=groups, step_limits=limits)

    call()
    bad: list[dict[str, Any]] = [
        {"xbc": random(rng, 2, 47)}, {"gates": random(rng, 2, 3)}, {"skip": random(rng, 1)}, {"out": random(rng, 2, 31)},
        {"out": good["xbc"]}, {"groups": 3}, {"groups": 0}, {"limits": (1.0, 0.5)}, {"limits": (float("nan"), 1.0)},
    ]  # fmt: skip
    for changed in bad:
        with pytest.raises(ValueError, match="state_space: "):
            call(**changed)
