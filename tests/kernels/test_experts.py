"""Mixtures of experts: routing, and grouped layers against float64 and against the reference; the same bits in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Routes, Routing
from sglang.srt.model.kernels.reference import ReferenceOps

from .support import INT_FORMATS, Float, close, ints, quantized, same_bits, tensor

REFERENCE = ReferenceOps()
KINDS = ("q4_1", "q8_0", "f32", "f16", "bf16")


def make_routes(num_experts: int, max_rows: int, k: int) -> Routes:
    pairs = max_rows * k
    shapes = np.zeros((max_rows, k), np.int32), np.zeros((max_rows, k), np.float32)
    return Routes(*shapes, np.zeros(pairs, np.int32), np.zeros(num_experts + 1, np.int32))


def routed(
    ops: Any, logits: Float, k: int, rows: int | None = None, how: Routing | None = None, bias: Any = None, scales: Any = None
) -> Routes:
    routes = make_routes(logits.shape[1], len(logits), k)
    ops.route(logits, routes, ints(len(logits) if rows is None else rows), how=how or Routing(), bias=bias, scales=scales)
    return routes


HOWS = {
    "softmax": Routing(),
    "softmax as it is": Routing(normalize=False),
    "scaled": Routing(scale=2.5),
    "sigmoid": Routing("sigmoid"),
    "two best of each group": Routing("sigmoid", num_groups=4, top_groups=2),
    "best of each group": Routing("softmax", normalize=False, scale=16.0, num_groups=4, top_groups=3, group_best=1),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("num_experts", "k"), [(8, 2), (60, 4), (128, 8), (20, 1)])
def test_routes(ops: Any, how: str, biased: bool, num_experts: int, k: int) -> None:
    rng = np.random.default_rng(num_experts)
    logits = rng.standard_normal((37, num_experts), np.float32) * 3
    bias = rng.standard_normal(num_experts).astype(np.float32) * 0.1 if biased else None
    got, want = (routed(each, logits, k, 33, HOWS[how], bias) for each in (ops, REFERENCE))
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.weights, want.weights, rtol=2e-6, atol=1e-9)
    np.testing.assert_array_equal(got.order, want.order)
    np.testing.assert_array_equal(got.starts, want.starts)


def test_scales_of_experts_multiply_their_weights(ops: Any) -> None:
    rng = np.random.default_rng(2)
    logits, scales = rng.standard_normal((9, 24), np.float32), rng.standard_normal(24).astype(np.float32)
    for each in (ops, REFERENCE):
        plain, scaled = routed(each, logits, 3), routed(each, logits, 3, scales=scales)
        np.testing.assert_array_equal(scaled.ids, plain.ids)
        np.testing.assert_array_equal(scaled.weights, plain.weights * scales[plain.ids])


def test_equal_experts_are_chosen_by_id(ops: Any) -> None:
    logits = np.zeros((3, 40), np.float32)
    logits[1, [7, 21, 39]] = 1
    logits[2] = np.arange(40) // 20
    for each in (ops, REFERENCE):
        np.testing.assert_array_equal(routed(each, logits, 4).ids, [[0, 1, 2, 3], [7, 21, 39, 0], [20, 21, 22, 23]])


def test_a_row_that_is_no_number_harms_no_other(ops: Any) -> None:
    """It has valid, different experts, and weights that make it no number."""
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((6, 24), np.float32)
    clean = routed(ops, logits, 3, how=HOWS["two best of each group"])
    for value in (np.nan, np.inf, -np.inf):
        spoilt = logits.copy()
        spoilt[2], spoilt[4, 7] = value, value
        for how in HOWS.values():
            routes = routed(ops, spoilt, 3, how=how)
            assert all(len(set(row)) == 3 and min(row) >= 0 and max(row) < 24 for row in routes.ids.tolist())
            assert np.isnan(routes.weights[2]).all() or how.score == "sigmoid"
        again = routed(ops, spoilt, 3, how=HOWS["two best of each group"])
        for row in (0, 1, 3, 5):
            np.testing.assert_array_equal(again.ids[row], clean.ids[row])
            same_bits(again.weights[row], clean.weights[row])


class Layer:
    """A layer of experts of one op set."""

    def __init__(
        self,
        ops: Any,
        fmt: str,
        num_experts: int,
        hidden: int,
        width: int,
        biased: bool = False,
        down: str = "",
        seed: int = 0,
        alone: bool = False,
    ) -> None:
        """`alone`: an expert has no gate."""
        rng = np.random.default_rng(seed)
        self.ops, self.hidden, self.width, self.num_experts = ops, hidden, width, num_experts
        self.parts = [
            [tensor(rng, fmt, width, hidden), tensor(rng, fmt, width, hidden), tensor(rng, down or fmt, hidden, width)]
            for _ in range(num_experts)
        ]
        self.gates = ops.pack_experts(num_experts, lambda e: self.parts[e][int(alone) : 2], gated=not alone)
        self.down = ops.pack_experts(num_experts, lambda e: self.parts[e][2:], gated=False)
        self.bias = rng.standard_normal((num_experts, (1 if alone else 2) * width), np.float32) if biased else None
        self.down_bias = rng.standard_normal((num_experts, hidden), np.float32) if biased else None

    def __call__(self, x: Float, routes: Routes, gate: Any = "silu", max_rows: int | None = None) -> Float:
        n, ops = len(x), self.ops
        room = max_rows or n
        k = routes.ids.shape[1]
        into, hidden = ops.activation(room, [self.gates]), ops.activation(room * k, [self.down])
        ops.store(x, into, ints(n))
        out = np.full((room, self.hidden + 3), 7, np.float32)
        ops.gated_experts(self.gates, into, hidden, routes, ints(n), gate=gate, bias=self.bias)
        ops.experts_linear(self.down, hidden, out[:, 1 : 1 + self.hidden], routes, ints(n), bias=self.down_bias)
        assert (out[n:] == 7).all() and (out[:, 0] == 7).all() and (out[:, 1 + self.hidden :] == 7).all()
        return np.ascontiguousarray(out[:n, 1 : 1 + self.hidden])


@pytest.mark.parametrize("gate", ["silu", "gelu_tanh", "gelu", "clamped_silu"])
@pytest.mark.parametrize("fmt", ["f32", "bf16", "f16"])
def test_dense_experts(ops: Any, fmt: str, gate: str) -> None:
    """Of any width, with biases."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((29, 44), np.float32)
    routes = routed(REFERENCE, rng.standard_normal((29, 11), np.float32), 3)
    got, want = (Layer(each, fmt, 11, 44, 27, True)(x, routes, gate) for each in (ops, REFERENCE))
    close(got, want, 1e-5)


@pytest.mark.parametrize(
    ("fmt", "hidden", "width"), [("f32", 44, 27), ("bf16", 64, 48), ("bf16", 44, 27), *((fmt, 256, 256) for fmt in INT_FORMATS)]
)
def test_experts_without_gates(ops: Any, fmt: str, hidden: int, width: int) -> None:
    """Of any width where rows are not in blocks, an odd number of panels too; a row's result does not depend on the others."""
    rng = np.random.default_rng(3)
    biased = fmt not in INT_FORMATS
    x = rng.standard_normal((29, hidden), np.float32)
    logits = rng.standard_normal((29, 6), np.float32)
    layers = [Layer(each, fmt, 6, hidden, width, biased, alone=True) for each in (ops, REFERENCE)]
    got, want = (layer(x, routed(REFERENCE, logits, 2), "relu2") for layer in layers)
    close(got, want, 1e-5 if biased else 3e-2)
    alone = layers[0](x[7:8], routed(REFERENCE, logits[7:8], 2), "relu2")
    assert alone.tobytes() == got[7:8].tobytes()


@pytest.mark.parametrize("fmt", INT_FORMATS)
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_quantized_experts(ops: Any, fmt: str, rows: int) -> None:
    """Against float64, with rows rounded as the kernels round them."""
    rng = np.random.default_rng(rows)
    layer = Layer(ops, fmt, 6, 256, 256)
    x = rng.standard_normal((rows, 256), np.float32)
    routes = routed(ops, rng.standard_normal((rows, 6), np.float32), 2)
    want = np.zeros((rows, 256))
    eye = np.arange(256, dtype=np.int32)
    for r in range(rows):
        for e, weight in zip(routes.ids[r], routes.weights[r], strict=True):
            gate, up, down = (unpacked(ops, part, eye) for part in layer.parts[e])
            row = quantized(x[r : r + 1])
            inner = row @ gate.T
            inner = inner / (1 + np.exp(-inner)) * (row @ up.T)
            want[r] += float(weight) * (quantized(inner.astype(np.float32)) @ down.T)[0]
    close(layer(x, routes), want, 2e-2)  # a value between two levels may go to either
    assert np.sqrt(np.mean((layer(x, routes) - want) ** 2)) < 2e-3 * np.sqrt(np.mean(want**2))


def unpacked(ops: Any, part: Any, ids: Any) -> Any:
    """What the packed matrix holds."""
    out = np.zeros((256, 256), np.float32)
    ops.embedding(ops.pack([part]), ids, out, ints(256))
    return out.astype(np.float64)


@pytest.mark.parametrize("fmt", KINDS)
def test_rows_do_not_depend_on_the_batch(ops: Any, more_threads: list[Any], fmt: str) -> None:
    """Alone, among others that choose the same experts or not, at any place, on any number of threads."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((450, 96), np.float32)
    logits = rng.standard_normal((450, 10), np.float32)
    logits[:, 3] += 4  # an expert with more rows than a panel is used for at a time
    layers = [Layer(each, fmt, 10, 96, 64) for each in (ops, *more_threads)]
    whole = layers[0](x, routed(ops, logits, 2))
    for layer in layers[1:]:
        same_bits(layer(x, routed(layer.ops, logits, 2)), whole)
    for some in ([0], [449], [7, 8], list(range(100, 113)), rng.permutation(450)[:200].tolist(), list(range(449, -1, -1))):
        for layer in layers:
            same_bits(layer(x[some], routed(layer.ops, logits[some], 2)), whole[some])
    same_bits(layers[0](x[:9], routed(ops, logits[:450], 2, 9), max_rows=450), whole[:9])


def test_experts_on_a_tape(ops: Any) -> None:
    """Recorded once with no rows, for steps of any number."""
    rng = np.random.default_rng(3)
    layer = Layer(ops, "q4_1", 8, 64, 32, down="q8_0")
    rows, logits, x = ints(0), np.zeros((20, 8), np.float32), np.zeros((20, 64), np.float32)
    routes, out = make_routes(8, 20, 3), np.zeros((20, 64), np.float32)
    into, hidden = ops.activation(20, [layer.gates]), ops.activation(60, [layer.down])
    tape = ops.begin_tape()
    ops.store(x, into, rows)
    ops.route(logits, routes, rows, how=Routing())
    ops.gated_experts(layer.gates, into, hidden, routes, rows, gate="silu")
    ops.experts_linear(layer.down, hidden, out, routes, rows)
    ops.end_tape()
    for n in (0, 1, 20, 13, 0, 2):
        x[:], logits[:] = rng.standard_normal(x.shape), rng.standard_normal(logits.shape)
        rows[0], out[:] = n, 9
        ops.runtime.wait(ops.runtime.replay(tape))
        assert (out[n:] == 9).all()
        if n:
            same_bits(out[:n], layer(x[:n], routed(ops, logits[:n], 3)))


def test_what_routes_say_is_kept_within_bounds(ops: Any) -> None:
    """Values inside arrays are clamped: no row outside is read or written."""
    layer = Layer(ops, "f32", 4, 32, 32)
    x = np.ones((5, 32), np.float32)
    for bad in (-(2**31), -1, 10, 2**31 - 1):
        routes = routed(ops, np.zeros((5, 4), np.float32), 2)
        routes.order[:] = bad
        layer(x, routes)
        routes.starts[1:3] = bad
        layer(x, routes)


def test_arguments_that_do_not_fit(ops: Any) -> None:
    layer = Layer(ops, "f32", 4, 32, 16)
    logits, rows = np.zeros((5, 4), np.float32), ints(5)
    routes = make_routes(4, 5, 2)
    into, hidden = ops.activation(5, [layer.gates]), ops.activation(10, [layer.down])
    out = np.zeros((5, 32), np.float32)
    cases: list[tuple[str, Any]] = [
        ("starts", lambda: ops.route(np.zeros((5, 6), np.float32), routes, rows, how=Routing())),
        ("rows", lambda: ops.route(np.zeros((6, 4), np.float32), routes, rows, how=Routing())),
        ("wider", lambda: ops.route(logits, make_routes(4, 5, 5), rows, how=Routing())),
        ("num_groups", lambda: ops.route(logits, routes, rows, how=Routing(num_groups=3))),
        ("top_groups", lambda: ops.route(logits, routes, rows, how=Routing(num_groups=2, top_groups=3))),
        ("wider", lambda: ops.route(logits, make_routes(4, 5, 3), rows, how=Routing(num_groups=2))),
        ("bias", lambda: ops.route(logits, routes, rows, how=Routing(), bias=np.zeros(3, np.float32))),
        ("scales", lambda: ops.route(logits, routes, rows, how=Routing(), scales=np.zeros(3, np.float32))),
        ("gated", lambda: ops.gated_experts(layer.down, into, hidden, routes, rows, gate="silu")),
        ("gated", lambda: ops.experts_linear(layer.gates, hidden, out, routes, rows)),
        ("experts", lambda: ops.gated_experts(layer.gates, into, hidden, make_routes(5, 5, 2), rows, gate="silu")),
        ("gate", lambda: ops.gated_experts(layer.gates, into, hidden, routes, rows, gate="relu")),
        ("gated", lambda: ops.gated_experts(layer.gates, into, hidden, routes, rows, gate="relu2")),
        ("width", lambda: ops.experts_linear(layer.down, into, out, routes, rows)),
        ("columns", lambda: ops.experts_linear(layer.down, hidden, out[:, :20], routes, rows)),
        ("bias", lambda: ops.experts_linear(layer.down, hidden, out, routes, rows, bias=np.zeros((3, 32), np.float32))),
    ]
    for word, call in cases:
        with pytest.raises(ValueError, match=word):
            call()


def test_banks_of_one_form_alone(ops: Any) -> None:
    rng = np.random.default_rng(0)
    parts = [tensor(rng, "q4_1", 32, 64), tensor(rng, "q8_0", 32, 64), tensor(rng, "q4_1", 16, 64)]
    for other in (1, 2):
        with pytest.raises(ModelError, match="one form"):
            ops.pack_experts(2, lambda e, other=other: [parts[other * e]], gated=False)
    bank = ops.pack_experts(3, lambda e: [parts[0]], gated=False)
    assert (bank.num_experts, bank.out_features, bank.in_features) == (3, 96, 64)
    assert bank.num_bytes == 3 * ops.pack([parts[0]]).num_bytes


# --- heads ------------------------------------------------------------------------------------------------------------------


def heads_of(rng: np.random.Generator, fmt: str, count: int, n: int, k: int) -> list[Any]:
    return [[tensor(rng, fmt, n, k)] for _ in range(count)]


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("count", "n", "k"), [(1, 16, 32), (5, 17, 40), (16, 576, 192), (3, 70, 6), (4, 128, 576)])
def test_every_head_has_its_matrix(ops: Any, fmt: str, count: int, n: int, k: int) -> None:
    """And rows are batch-invariant."""
    rng = np.random.default_rng(n)
    parts = heads_of(rng, fmt, count, n, k)
    bank = ops.pack_experts(count, parts.__getitem__, gated=False)
    x = rng.standard_normal((300, count * k), np.float32)
    matrices = np.stack([part[0].dequantize() for part in parts]).astype(np.float64)
    want = np.einsum("hnk,rhk->rhn", matrices, x.reshape(-1, count, k)).reshape(300, -1)

    def run(rows: list[int]) -> Float:
        into = ops.activation(len(rows), [bank], count)
        assert into.width == count * k
        ops.store(x[rows], into, ints(len(rows)))
        wide = np.full((len(rows) + 1, count * n + 3), 7, np.float32)
        ops.heads_linear(bank, into, wide[:, 2 : 2 + count * n], ints(len(rows)))
        assert (wide[-1] == 7).all() and (wide[:, :2] == 7).all() and (wide[:, -1] == 7).all()
        return np.ascontiguousarray(wide[:-1, 2:-1])

    whole = run(list(range(300)))
    close(whole, want, 2e-6 * k**0.5)
    for some in ([0], [299], [7, 8], list(range(100, 113)), list(range(299, 99, -1))):
        same_bits(run(some), np.ascontiguousarray(whole[some]))


def test_heads_on_a_tape(ops: Any) -> None:
    rng = np.random.default_rng(5)
    parts = heads_of(rng, "bf16", 3, 20, 24)
    bank = ops.pack_experts(3, parts.__getitem__, gated=False)
    rows, x, out = ints(0), np.zeros((9, 72), np.float32), np.zeros((9, 60), np.float32)
    into = ops.activation(9, [bank], 3)
    tape = ops.begin_tape()
    ops.store(x, into, rows)
    ops.heads_linear(bank, into, out, rows)
    ops.end_tape()
    for n in (0, 1, 9, 4):
        x[:] = rng.standard_normal(x.shape)
        rows[0], out[:] = n, 9
        ops.runtime.wait(ops.runtime.replay(tape))
        assert (out[n:] == 9).all()
        again, fresh = ops.activation(9, [bank], 3), np.zeros((9, 60), np.float32)
        ops.store(x, again, rows)
        ops.heads_linear(bank, again, fresh, rows)
        same_bits(out[:n], fresh[:n])


def test_heads_that_do_not_fit(ops: Any) -> None:
    rng = np.random.default_rng(0)
    bank, odd, blocks = (
        ops.pack_experts(2, heads_of(rng, fmt, 2, 32, k).__getitem__, gated=False)
        for fmt, k in (("f32", 32), ("f32", 33), ("q8_0", 32))
    )
    into, narrow, quantized_rows = (ops.activation(4, [bank], heads) for heads in (2, 1, 2))
    gated = ops.pack_experts(2, lambda e: heads_of(rng, "f32", 2, 32, 32)[0] * 2, gated=True)
    out, rows = np.zeros((4, 64), np.float32), ints(4)
    cases: list[tuple[str, Any]] = [
        ("width", lambda: ops.heads_linear(bank, narrow, out, rows)),
        ("even", lambda: ops.heads_linear(odd, ops.activation(4, [odd], 2), out, rows)),
        ("float", lambda: ops.heads_linear(blocks, ops.activation(4, [blocks], 2), out, rows)),
        ("gates", lambda: ops.heads_linear(gated, into, out, rows)),
        ("columns", lambda: ops.heads_linear(bank, quantized_rows, out[:, :63], rows)),
    ]
    for word, call in cases:
        with pytest.raises(ValueError, match=word):
            call()
