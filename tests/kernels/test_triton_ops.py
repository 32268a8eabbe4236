"""The CUDA op set against the reference, op by op, in Triton's interpreter: float32 to 1e-5, bfloat16 to 1e-2 of the largest value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sglang.srt.model.kernels.low_rank import LowRank, RowAdapters, group_rows, row_adapter_sizes
from sglang.srt.model.kernels.ops import AttentionMeta, Routes, Routing, StepShape
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.quant.formats import HostTensor, dense

from .support import FLOAT_FORMATS, INT_FORMATS, SMALL_FORMATS, Float, close, ints, meta_of, same_bits, tensor

pytest.importorskip("triton", reason="Triton is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")
from sglang.srt.model.kernels.cuda import attention as cuda_attention  # noqa: E402
from sglang.srt.model.kernels.cuda import linear as cuda_linear  # noqa: E402
from sglang.srt.model.kernels.cuda import logits as cuda_logits  # noqa: E402
from sglang.srt.model.kernels.cuda import ops as cuda  # noqa: E402

if not cuda.INTERPRETED:
    pytest.skip("Triton compiles here: benchmarks/cuda.py tests on the device", allow_module_level=True)

REFERENCE = ReferenceOps()
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def ops(request: pytest.FixtureRequest) -> Any:
    return cuda.create_cuda_ops("cpu", request.param)


@pytest.fixture(scope="module")
def exact() -> Any:
    return cuda.create_cuda_ops("cpu", "float32")


def tolerance(ops: Any) -> float:
    return TOLERANCE[str(ops.dtype).split(".")[1]]


def normal(*shape: int, seed: int = 0) -> Float:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def host(x: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = getattr(x, "data", x).float().numpy() if x.dtype != torch.int32 else x.numpy()
    return values


class Pair:
    """The same op on both sets: arrays are made on both and compared afterwards."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def hidden(self, values: Float) -> tuple[Float, Any]:
        """In the op set's own type; the reference gets the rounded values."""
        there = torch.from_numpy(values).to(self.ops.dtype)
        return there.float().numpy().copy(), there

    def filled(self, values: Float, readers: tuple[Any, Any]) -> tuple[Any, Any]:
        """Activations that hold these rows."""
        a, b = REFERENCE.activation(len(values), [readers[0]]), self.ops.activation(len(values), [readers[1]])
        b.data.copy_(torch.from_numpy(values))
        a.data[:] = b.data.float().numpy()
        return a, b

    def weights(self, *parts: HostTensor) -> tuple[Any, Any]:
        return REFERENCE.pack(parts), self.ops.pack(parts)

    def check(self, got: Any, want: Any, rows: int, factor: float = 1.0) -> None:
        a, b = getattr(want, "data", want), getattr(got, "data", got)
        b = b if isinstance(b, torch.Tensor) else got.data
        close(b[:rows].float().numpy(), np.asarray(a)[:rows], factor * tolerance(self.ops))
        assert not b[rows:].any(), "rows beyond the count were written"


@pytest.fixture
def pair(ops: Any) -> Pair:
    return Pair(ops)


# --- rows -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["f32", "bf16", "f16", "q4_1", "q8_0", "q6_k"])
def test_embedding(pair: Pair, fmt: str) -> None:
    weights = pair.weights(tensor(np.random.default_rng(0), fmt, 20, 256))
    want, got = np.zeros((5, 256), np.float32), pair.ops.empty((5, 256))
    ids = ints(3, 0, 19, 3, 7)
    REFERENCE.embedding(weights[0], ids, want, ints(4), scale=2.5)
    pair.ops.embedding(weights[1], pair.ops.array(ids), got, pair.ops.array(ints(4)), scale=2.5)
    close(got[:4].numpy(), want[:4], tolerance(pair.ops))
    assert not got[4:].any()


def test_rows_are_rounded_to_nearest(ops: Any) -> None:
    """As torch rounds: ties to even, infinities and NaN as they are."""
    x = normal(3, 4096) * 100
    x[0, :6] = [np.inf, -np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8, 0.0]
    x[1, 0] = np.finfo(np.float32).max
    out = ops.activation(3, [ops.pack([dense("w", normal(2, 4096))])])
    ops.store(ops.array(x), out, ops.array(ints(3)))
    np.testing.assert_array_equal(host(out.data), torch.from_numpy(x).to(ops.dtype).float().numpy())


@pytest.mark.parametrize("width", [64, 100])
@pytest.mark.parametrize("case", ["plain", "delta", "rows"])
def test_rms_norm(pair: Pair, width: int, case: str) -> None:
    x, weight = normal(6, width), normal(width, seed=1)
    a, b = pair.hidden(normal(6, width, seed=2))
    there, index = torch.from_numpy(x.copy()), ints(4, 0, 4, 2)
    want, got = np.zeros((6, width), np.float32), pair.ops.empty((6, width), "hidden")
    delta = case == "delta"
    kwargs = {"row_idx": index} if case == "rows" else {}
    REFERENCE.rms_norm(x, weight, want, ints(4), eps=1e-5, delta=a if delta else None, **kwargs)
    kwargs = {name: pair.ops.array(v) for name, v in kwargs.items()}
    rows = pair.ops.array(ints(4))
    pair.ops.rms_norm(there, pair.ops.array(weight), got, rows, eps=1e-5, delta=b if delta else None, **kwargs)
    pair.check(got, want, 4)
    same_bits(there.numpy(), x)


@pytest.mark.parametrize("delta", [False, True])
def test_layer_norm(pair: Pair, delta: bool) -> None:
    x, weight, bias = normal(5, 72), normal(72, seed=1), normal(72, seed=2)
    there = torch.from_numpy(x.copy())
    extra = normal(5, 72, seed=3)
    want, got = np.zeros((5, 72), np.float32), pair.ops.empty((5, 72), "hidden")
    REFERENCE.layer_norm(x, weight, bias, want, ints(3), eps=1e-6, delta=extra if delta else None)
    arrays = [pair.ops.array(v) for v in (weight, bias)]
    more = pair.ops.array(extra) if delta else None
    pair.ops.layer_norm(there, *arrays, got, pair.ops.array(ints(3)), eps=1e-6, delta=more)
    pair.check(got, want, 3)
    close(there.numpy(), x, 1e-6)


@pytest.mark.parametrize("fn", ["silu", "gelu_tanh", "gelu", "quick_gelu", "relu", "relu2"])
def test_gates_and_activations(pair: Pair, fn: str) -> None:
    """On column ranges of wider buffers, with values where each function is nearly flat."""
    values = np.concatenate([normal(4, 50) * 3, np.array([[-100, -30, -0.01, 0, 1e-3, 90]] * 4, np.float32)], axis=1)
    a, b = pair.hidden(values)
    readers = pair.weights(dense("w", normal(8, 28)))
    want, got = pair.filled(np.zeros((4, 28), np.float32), readers)
    rows = pair.ops.array(ints(3))
    REFERENCE.activate(a[:, 28:], want, ints(3), fn=fn)
    pair.ops.activate(b[:, 28:], got, rows, fn=fn)
    pair.check(got, want, 3)
    if fn in ("silu", "gelu_tanh", "gelu"):
        REFERENCE.gate(a[:, :28], a[:, 28:], want, ints(3), gate_fn=fn)
        pair.ops.gate(b[:, :28], b[:, 28:], got, rows, gate_fn=fn)
        pair.check(got, want, 3)
        columns = pair.ops.array(np.zeros((4, 30), np.float32))
        pair.ops.gate(b[:, :28], b[:, 28:], columns[:, 1:29], rows, gate_fn=fn)
        close(columns[:3, 1:29].numpy(), want.data[:3], 1e-2)
        assert not columns[3].any() and not columns[:, [0, 29]].any()


def test_rows_of_pictures(exact: Any) -> None:
    """overlay, gather_rows, blend_rows, select_rope, rotate, soft_cap, store."""
    pair, rows, three = Pair(exact), exact.array(ints(3)), ints(3)
    x, source = normal(4, 40), normal(6, 40, seed=1)
    for add in (False, True):
        want, got = x.copy(), exact.array(x)
        REFERENCE.overlay(want, source, ints(5, -1, 0, 2), three, add=add)
        exact.overlay(got, exact.array(source), exact.array(ints(5, -1, 0, 2)), rows, add=add)
        same_bits(got.numpy(), want)
    want, got = np.zeros((4, 40), np.float32), exact.empty((4, 40))
    REFERENCE.gather_rows(source, ints(5, 1, 1, 0), want, three)
    exact.gather_rows(exact.array(source), exact.array(ints(5, 1, 1, 0)), got, rows)
    pair.check(got, want, 3)
    index, share = np.random.default_rng(0).integers(0, 6, (4, 4)).astype(np.int32), normal(4, 4, seed=2)
    REFERENCE.blend_rows(source, index, share, want, three)
    exact.blend_rows(exact.array(source), exact.array(index), exact.array(share), got, rows)
    pair.check(got, want, 3)
    cos, sin, positions = normal(9, 12), normal(9, 12, seed=3), np.random.default_rng(1).integers(0, 9, (3, 4)).astype(np.int32)
    axes = ints(*([0, 1, 2] * 4))
    tables = [np.zeros((4, 12), np.float32) for _ in range(2)]
    there = [exact.empty((4, 12)) for _ in range(2)]
    REFERENCE.select_rope(cos, sin, positions, axes, *tables, three)
    exact.select_rope(*(exact.array(v) for v in (cos, sin, positions, axes)), *there, rows)
    for a, b in zip(tables, there, strict=True):
        pair.check(b, a, 3)
    want, got = x.copy(), exact.array(x)
    REFERENCE.rotate(want, cos[:4, :5], sin[:4, :5], three, num_heads=3, head_dim=10)
    exact.rotate(got, *(exact.array(v[:4, :5]) for v in (cos, sin)), rows, num_heads=3, head_dim=10)
    close(got.numpy(), want, 1e-6)
    want, got = x * 20, exact.array(x * 20)
    REFERENCE.soft_cap(want, three, cap=30.0)
    exact.soft_cap(got, rows, cap=30.0)
    close(got.numpy(), want, 1e-6)


def test_take_sampled(exact: Any) -> None:
    ids, previous, sampled = ints(100, 101, 102, 103, 104), ints(2, -1, 1, 0, 1), ints(7, -1, 9)
    there = exact.array(ids)
    exact.take_sampled(there, exact.array(previous), exact.array(sampled), exact.array(ints(4)))
    REFERENCE.take_sampled(ids, previous, sampled, ints(4))
    assert there.tolist() == ids.tolist() == [9, 101, 0, 7, 104]


# --- linear -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [*FLOAT_FORMATS, *(fmt for fmt in INT_FORMATS if fmt not in ("mxfp4", *SMALL_FORMATS))])
def test_levels_are_the_formats_values(exact: Any, fmt: str) -> None:
    weight = tensor(np.random.default_rng(1), fmt, 6, 512)
    packed = exact.pack([weight])
    values = packed.data if packed.form == "dense" else exact._products.dequantized(packed)
    close(values.numpy(), weight.dequantize(), 1e-6)


@pytest.mark.parametrize("fmt", ["f32", "q4_1", "q6_k"])
@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("deterministic", [False, True])
def test_linear(ops: Any, fmt: str, rows: int, deterministic: bool) -> None:
    """Stacked parts with a bias, into a column range; few and many rows, the library's and our own products."""
    ops = cuda.create_cuda_ops("cpu", str(ops.dtype).split(".")[1], deterministic=deterministic)
    pair, rng = Pair(ops), np.random.default_rng(2)
    parts = [tensor(rng, fmt, n, 256) for n in (24, 10)]
    weights = pair.weights(*parts)
    x = pair.filled(normal(rows + 1, 256), weights)
    bias = normal(34, seed=5)
    want, (_, got) = np.zeros((rows + 1, 40), np.float32), pair.hidden(np.zeros((rows + 1, 40), np.float32))
    REFERENCE.linear(weights[0], x[0], want[:, 3:37], ints(rows), bias=bias)
    count = ops.array(ints(rows))
    ops.bound(count, rows)
    ops.linear(weights[1], x[1], got[:, 3:37], count, bias=ops.array(bias))
    pair.check(got, want, rows)


@pytest.mark.parametrize("fmt", ["q4_1", "q8_0"])
@pytest.mark.parametrize(("rows", "deterministic"), [(3, False), (20, False), (20, True)])
def test_columns_out_of_order(ops: Any, fmt: str, rows: int, deterministic: bool) -> None:
    """Whichever product runs, each column meets its own input."""
    ops = cuda.create_cuda_ops("cpu", str(ops.dtype).split(".")[1], deterministic=deterministic)
    pair, rng = Pair(ops), np.random.default_rng(2)
    order = rng.permutation(256).astype(np.int32)
    weights = pair.weights(*(replace(tensor(rng, fmt, n, 256), order=order) for n in (24, 10)))
    x = pair.filled(normal(rows, 256), weights)
    want, (_, got) = np.zeros((rows, 34), np.float32), pair.hidden(np.zeros((rows, 34), np.float32))
    count = ops.array(ints(rows))
    ops.bound(count, rows)
    REFERENCE.linear(weights[0], x[0], want, ints(rows))
    ops.linear(weights[1], x[1], got, count)
    pair.check(got, want, rows)


def test_logits_stay_float32(ops: Any) -> None:
    """A product into float32 rows is not rounded to the model's type on its way."""
    pair = Pair(ops)
    weights = pair.weights(dense("w", normal(33, 64), "bf16"))
    x = pair.filled(normal(4, 64, seed=1), weights)
    want, got = np.zeros((4, 33), np.float32), ops.empty((4, 33))
    REFERENCE.linear(weights[0], x[0], want, ints(4))
    ops.linear(weights[1], x[1], got, ops.array(ints(4)))
    close(got.numpy(), want, 1e-5)


@pytest.mark.parametrize("fmt", ["f32", "q4_1"])
def test_gated_linear(pair: Pair, fmt: str) -> None:
    rng = np.random.default_rng(3)
    gate, up = tensor(rng, fmt, 40, 64), tensor(rng, fmt, 40, 64)
    weights = REFERENCE.pack_gated(gate, up), pair.ops.pack_gated(gate, up)
    x = pair.filled(normal(5, 64), weights)
    out = pair.filled(np.zeros((5, 40), np.float32), pair.weights(dense("w", normal(8, 40))))
    REFERENCE.gated_linear(weights[0], x[0], out[0], ints(4), gate="silu")
    pair.ops.gated_linear(weights[1], x[1], out[1], pair.ops.array(ints(4)), gate="silu")
    pair.check(out[1], out[0], 4, factor=2)


def test_the_fastest_product_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For few rows of each shape of weights, the library among the candidates; here the clock is made up."""
    ops = cuda.create_cuda_ops("cpu", "float32")
    pair, products = Pair(ops), ops._products
    products._on_gpu = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    plain, gate_and_up, one_row = [2.0, 5.0, 3.0, 4.0, 6.0], [9.0, 7.0, 1.0, 8.0, 9.0], [2.0, 3.0, 3.0, 1.0, 4.0]
    clock = iter([*plain, *plain, *gate_and_up, *one_row])
    monkeypatch.setattr(cuda_linear, "_time", lambda run, device: run() or next(clock))
    launched: list[Any] = []
    launch = products._launch

    def note(sizes: Any, *args: Any, **more: Any) -> None:
        launched.append(sizes)
        launch(sizes, *args, **more)

    monkeypatch.setattr(products, "_launch", note)
    weights = pair.weights(dense("w", normal(8, 1024)))
    x = pair.filled(normal(3, 1024), weights)
    want, got, rows = np.zeros((3, 8), np.float32), ops.empty((3, 8), "hidden"), ops.array(ints(3))
    REFERENCE.linear(weights[0], x[0], want, ints(3))
    for _ in range(2):
        ops.linear(weights[1], x[1], got, rows)
        pair.check(got, want, 3)
    assert launched == list(cuda_linear._FEW_SIZES), "the library is faster"
    gated = pair.weights(dense("w", normal(32, 1024)))[1]
    out = pair.filled(np.zeros((3, 16), np.float32), pair.weights(dense("w", normal(8, 16))))[1]
    ops.gated_linear(gated, x[1], out, rows, gate="silu")
    assert launched[4:] == [*cuda_linear._FEW_SIZES, *cuda_linear._FEW_SIZES, cuda_linear._FEW_SIZES[1]]
    assert [m["us"]["library"] for m in products.measured()] == [2000.0, 2000.0, 9000.0], "one after the other is a candidate"
    launched.clear()
    ops.bound(rows, 1)
    ops.linear(weights[1], x[1], got, rows)
    one = cuda_linear._ONE_SIZES
    assert launched == [*one, one[2]], "one row has its own candidates"


def test_fused_gate(exact: Any) -> None:
    """The kernel that few rows take on a GPU: gate, up and their product at once."""
    pair, rng = Pair(exact), np.random.default_rng(3)
    gate, up = tensor(rng, "f32", 40, 72), tensor(rng, "f32", 40, 72)
    weights = REFERENCE.pack_gated(gate, up), exact.pack_gated(gate, up)
    x = pair.filled(normal(3, 72), weights)
    out = pair.filled(np.zeros((3, 40), np.float32), pair.weights(dense("w", normal(8, 40))))
    REFERENCE.gated_linear(weights[0], x[0], out[0], ints(2), gate="gelu_tanh")
    exact._products._launch((16, 16, 64, 4, 4), weights[1], x[1], out[1].data, exact.array(ints(2)), 3, None, "gelu_tanh")
    pair.check(out[1], out[0], 2)


@pytest.mark.parametrize("fn", [None, "silu"])
@pytest.mark.parametrize("width", [128, 200])
def test_one_row(ops: Any, fn: str | None, width: int) -> None:
    """The kernel that a single row takes on a GPU, with and without a gate and a bias."""
    pair, rng = Pair(ops), np.random.default_rng(3)
    parts = [tensor(rng, "f32", 37, width) for _ in range(2)]
    weights = REFERENCE.pack_gated(*parts), ops.pack_gated(*parts)
    x, num = pair.filled(normal(2, width), weights), 37 if fn else 74
    want, got = pair.filled(np.zeros((2, num), np.float32), pair.weights(dense("w", normal(8, num))))
    bias = None if fn else normal(num, seed=5)
    if fn:
        REFERENCE.gated_linear(weights[0], x[0], want, ints(1), gate=fn)
    else:
        REFERENCE.linear(weights[0], x[0], want.data, ints(1), bias=bias)
    there = None if bias is None else ops.array(bias)
    for count in (0, 1):  # a recording may run without rows
        ops._products._launch((1, 4, 64, 1, 4), weights[1], x[1], got.data, ops.array(ints(count)), 1, there, fn)
        assert got.data.any() == count
    pair.check(got, want, 1, factor=2)


@pytest.mark.parametrize("fmt", ["q4_0", "q4_1", "q8_0", "q6_k"])
@pytest.mark.parametrize("ordered", [False, True])
def test_every_size_of_quantized_products(ops: Any, fmt: str, ordered: bool) -> None:
    """The kernels among which a GPU takes the fastest, on a width that is no multiple of their blocks."""
    pair, rng, width = Pair(ops), np.random.default_rng(4), 768
    order = rng.permutation(width).astype(np.int32) if ordered else None
    weights = pair.weights(*(replace(tensor(rng, fmt, n, width), order=order) for n in (24, 13)))
    bias = normal(37, seed=5)
    x = pair.filled(normal(3, width), weights)
    for group, rows in (("one", 1), ("few", 3), ("some", 3)):
        for sizes in cuda_linear.candidates_for(weights[1], group):
            want, (_, got) = np.zeros((3, 37), np.float32), pair.hidden(np.zeros((3, 37), np.float32))
            REFERENCE.linear(weights[0], x[0], want, ints(rows), bias=bias)
            for count in (0, rows):  # a recording may run without rows
                ops._products._launch(sizes, weights[1], x[1], got, ops.array(ints(count)), rows, ops.array(bias), None)
                assert got.any() == (count > 0)
            pair.check(got, want, rows)


# --- attention --------------------------------------------------------------------------------------------------------------------


class Setting:
    """A pool with the same K and V on both sets, and requests over scattered slots."""

    def __init__(
        self, pair: Pair, heads: int, kv_heads: int, dim: int, context: int, requests: list[tuple[int, int, int]]
    ) -> None:
        self.pair, self.heads = pair, heads
        slots = -(-context * 4 // 16) * 16
        rng = np.random.default_rng(dim)
        self.table = rng.permutation(slots)[: 4 * context].reshape(4, context).astype(np.int32)
        self.kv = REFERENCE.kv_layers(1, slots, kv_heads, dim)[0], pair.ops.kv_layers(1, slots, kv_heads, dim)[0]
        for name in "kv":
            values = torch.from_numpy(normal(slots, kv_heads, dim, seed=ord(name))).to(pair.ops.kv_dtype)
            getattr(self.kv[1], name).copy_(values.transpose(0, 1))
            getattr(self.kv[0], name)[:] = values.float().numpy()
        self.num_rows = sum(new for _, new, _ in requests)
        self.requests = requests
        width = (heads + 2 * kv_heads) * dim
        self.qkv = pair.hidden(normal(self.num_rows + 2, width, seed=7) * dim**-0.25)
        readers = pair.weights(dense("w", normal(2, heads * dim)))
        self.out = pair.filled(np.zeros((self.num_rows + 2, heads * dim), np.float32), readers)

    def metas(self, ends: npt.NDArray[np.int32] | None = None) -> tuple[AttentionMeta, AttentionMeta]:
        there = meta_of(self.table, self.requests, 4)
        here = self.pair.ops
        table = here.table(self.table)
        here.sync_table(table, self.table, there.req_pool_idx, there.seq_lens)
        arrays = (there.num_reqs, there.req_pool_idx, there.q_start, there.q_len, there.seq_lens)
        meta = AttentionMeta(*(here.array(a) for a in arrays), table, None if ends is None else here.array(ends))
        longest = max(new for _, new, _ in self.requests)
        here.bound_step(meta, StepShape(self.num_rows, len(self.requests), longest))
        return AttentionMeta(*arrays, self.table, ends), meta

    def run(self, ends: npt.NDArray[np.int32] | None = None, **kwargs: Any) -> None:
        metas = self.metas(ends)
        REFERENCE.attention(self.qkv[0], self.kv[0], self.out[0], metas[0], num_heads=self.heads, **kwargs)
        self.pair.ops.attention(self.qkv[1], self.kv[1], self.out[1], metas[1], num_heads=self.heads, **kwargs)
        self.pair.check(self.out[1], self.out[0], self.num_rows)


MIXED = [(2, 9, 40), (0, 1, 33), (3, 21, 21), (1, 1, 1)]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (7, 1, 24), (2, 2, 64)])
def test_attention(pair: Pair, heads: int, kv_heads: int, dim: int) -> None:
    Setting(pair, heads, kv_heads, dim, 48, MIXED).run()


@pytest.mark.parametrize("kwargs", [{"window": 5}, {"window": 33}, {"soft_cap": 3.0}], ids=str)
def test_attention_window_and_cap(pair: Pair, kwargs: Any) -> None:
    Setting(pair, 4, 2, 16, 96, [(1, 10, 90), (0, 1, 71), (2, 2, 40)]).run(**kwargs)


def test_attention_with_sinks(pair: Pair) -> None:
    setting = Setting(pair, 4, 1, 16, 96, [(1, 10, 90), (0, 1, 71), (2, 2, 40)])
    sinks, metas = np.array([0.5, -80, 3.0, 60], np.float32), setting.metas()
    for i, (ops, values) in enumerate(((REFERENCE, sinks), (pair.ops, pair.ops.array(sinks)))):
        ops.attention(setting.qkv[i], setting.kv[i], setting.out[i], metas[i], num_heads=4, window=33, sinks=values)
    pair.check(setting.out[1], setting.out[0], setting.num_rows)


def test_attention_that_looks_ahead(exact: Any) -> None:
    setting = Setting(Pair(exact), 4, 2, 16, 48, [(1, 12, 40), (0, 5, 5)])
    ends = np.zeros(setting.num_rows + 2, np.int32)
    ends[2:8] = 37
    setting.run(ends)


@pytest.mark.parametrize("window", [0, 700])
def test_decode_is_cut_three_ways_with_the_same_bits(window: int) -> None:
    """By chunks, by spans and not at all; and in deterministic mode a row extended is a row decoded."""
    results = []
    requests = [(0, 1, 1100), (1, 1, 70)]
    for busy, room in ((1 << 20, 99), (1, 99), (1, 1)):
        ops = cuda.CudaOps("cpu", "float32", deterministic=True, partial_bytes=room * 4 * 2 * (16 + 2))
        ops._attention.busy = busy
        setting = Setting(Pair(ops), 2, 1, 16, 1104, requests)
        setting.run(window=window)
        results.append(setting.out[1].data[:2].numpy().copy())
    same_bits(results[0], results[1])
    same_bits(results[0], results[2])
    extended = Setting(Pair(ops), 2, 1, 16, 1104, [(0, 2, 1100), (1, 2, 70)])
    for a, b in zip(extended.qkv, setting.qkv, strict=True):
        a[1], a[3] = b[0], b[1]
    extended.run(window=window)
    same_bits(extended.out[1].data.numpy()[[1, 3]], results[0])


def test_pools_beyond_32_bits_are_read_alike(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode and extend with places of slots in 64 bits."""
    results = []
    for limit in (cuda_attention.MAX_INT32, 0):
        monkeypatch.setattr(cuda_attention, "MAX_INT32", limit)
        setting = Setting(Pair(exact), 2, 1, 16, 112, [(0, 1, 100), (1, 5, 70)])
        setting.run()
        results.append(setting.out[1].data.numpy().copy())
    same_bits(*results)


@pytest.mark.parametrize("norms", [False, True, "last"])
@pytest.mark.parametrize(("dim", "pairs"), [(16, 8), (16, 4), (20, 10), (20, 1)])
def test_rope_store(pair: Pair, norms: bool | str, dim: int, pairs: int) -> None:
    """Whole heads and parts of them, with and without norms; the pool is read back."""
    heads, kv_heads, ops = 3, 2, pair.ops
    qkv = pair.hidden(normal(5, (heads + 2 * kv_heads) * dim))
    kv = REFERENCE.kv_layers(1, 32, kv_heads, dim)[0], ops.kv_layers(1, 32, kv_heads, dim)[0]
    cos, sin = normal(50, pairs, seed=1), normal(50, pairs, seed=2)
    weights = {"q_norm": normal(dim, seed=3), "k_norm": normal(dim, seed=4), "eps": 1e-6} if norms else {}
    if norms == "last":
        weights |= {"norm_last": True, "q_growth": np.abs(normal(50, seed=5)) + 1}
    args = ints(3, 49, 0, 7, 1), ints(31, 2, 16, 9, 0), ints(4)
    common = {"num_heads": heads, "q_scale": 0.3}
    REFERENCE.rope_store(qkv[0], kv[0], *args, cos=cos, sin=sin, **common, **weights)
    there = {name: ops.array(v) if isinstance(v, np.ndarray) else v for name, v in weights.items()}
    ops.rope_store(qkv[1], kv[1], *(ops.array(a) for a in args), cos=ops.array(cos), sin=ops.array(sin), **common, **there)
    q = slice(0, heads * dim)
    close(qkv[1][:, q].float().numpy(), qkv[0][:, q], tolerance(ops))
    for name in "kv":
        close(getattr(kv[1], name).transpose(0, 1).float().numpy(), getattr(kv[0], name), tolerance(ops))


def test_q_alone(pair: Pair) -> None:
    """In a column range; the pool stays as it is."""
    dim, heads, ops = 16, 3, pair.ops
    qkv = pair.hidden(normal(5, (heads + 4) * dim))
    kv = REFERENCE.kv_layers(1, 32, 2, dim)[0], ops.kv_layers(1, 32, 2, dim)[0]
    cos, sin, weight = normal(50, 8, seed=1), normal(50, 8, seed=2), normal(dim, seed=3)
    args, q = (ints(3, 49, 0, 7, 1), ints(31, 2, 16, 9, 0), ints(4)), slice(0, heads * dim)
    common = {"num_heads": heads, "q_scale": 0.3, "eps": 1e-6, "q_only": True}
    REFERENCE.rope_store(qkv[0][:, q], kv[0], *args, cos=cos, sin=sin, q_norm=weight, k_norm=weight, **common)
    there = {name: ops.array(v) for name, v in (("cos", cos), ("sin", sin), ("q_norm", weight), ("k_norm", weight))}
    rest = qkv[1][:, heads * dim :].clone()
    ops.rope_store(qkv[1][:, q], kv[1], *(ops.array(a) for a in args), **there, **common)
    close(qkv[1][:, q].float().numpy(), qkv[0][:, q], tolerance(ops))
    assert torch.equal(qkv[1][:, heads * dim :], rest)
    assert not kv[1].k.any() and not kv[1].v.any()


@pytest.mark.parametrize("width", [20, 1030])
def test_ops_on_residual_streams(pair: Pair, width: int) -> None:
    """Of column ranges, with a row of zeros and one that does not count."""
    ops, rows = pair.ops, ints(3)
    like = normal(4, width, seed=7)
    for name, more in (("scale", {"by": 0.3}), ("match_rms", {}), ("sparsify", {"deviations": 0.4})):
        values = normal(4, width + 4)
        values[1] = 0
        want, got = pair.hidden(values)
        others = ([like], [ops.array(like)]) if name == "match_rms" else ([], [])
        getattr(REFERENCE, name)(want[:, :width], *others[0], rows, **more)
        getattr(ops, name)(got[:, :width], *others[1], ops.array(rows), **more)
        close(got.float().numpy(), want, tolerance(ops))


def test_float8_pool() -> None:
    """K and V are kept as e4m3, here of values that it holds exactly: the interpreter rounds others wrongly."""
    ops = cuda.create_cuda_ops("cpu", "float32", "fp8_e4m3")
    assert ops.kv_bytes_per_token(2, 16) == 2 * 2 * 16
    qkv = torch.from_numpy(normal(3, 5 * 16)).to(torch.float8_e4m3fn).float()
    kv = ops.kv_layers(1, 16, 2, 16)[0]
    one = ops.array(np.ones((4, 8), np.float32))
    zero = ops.array(np.zeros((4, 8), np.float32))
    args = (ops.array(ints(0, 1, 2)), ops.array(ints(4, 5, 6)), ops.array(ints(3)))
    ops.rope_store(qkv, kv, *args, num_heads=1, cos=one, sin=zero, q_scale=1.0)
    stored = torch.cat([kv.k.float()[:, 4:7].transpose(0, 1), kv.v.float()[:, 4:7].transpose(0, 1)], 1).reshape(3, -1)
    assert torch.equal(stored, qkv[:, 16:])
    Setting(Pair(ops), 4, 2, 16, 48, MIXED).run()


@pytest.mark.parametrize("reach", [None, 0, 4])
@pytest.mark.parametrize(("begin", "window"), [(0, 0), (20, 0), (0, 1), (20, 9), (0, 200)])
def test_segment_attention(ops: Any, begin: int, window: int, reach: int | None) -> None:
    starts, heads, dim = ints(0, 17, 18, 70), 2, 20
    qkv = normal(70, 3 * heads * dim)
    bias = None if reach is None else normal(heads, 2 * reach + 1, seed=3)
    want, got = np.zeros((70, heads * dim), np.float32), ops.empty((70, heads * dim))
    common = {"begin": begin, "end": 61, "num_heads": heads, "head_dim": dim, "scale": 0.3, "window": window}
    REFERENCE.segment_attention(qkv, starts, want, **common, bias=bias)
    ops.segment_attention(ops.array(qkv), ops.array(starts), got, **common, bias=None if bias is None else ops.array(bias))
    close(got.numpy(), want, tolerance(ops))


# --- logits -----------------------------------------------------------------------------------------------------------------------

VOCAB = 1003


def logits(rows: int, seed: int = 0) -> Float:
    return normal(rows, VOCAB, seed=seed) * 3


def compare(run: Callable[[Any, Any, Any], None], ops: Any, x: Float, dtype: Any = np.int32) -> None:
    """run(ops, x, out) on both."""
    want, got = np.full(len(x), -7, dtype), np.full(len(x), -7, dtype)
    there = ops.array(x)
    run(REFERENCE, x, want)
    run(ops, there, got)
    if dtype == np.int32:
        assert got.tolist() == want.tolist()
    else:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(there.numpy(), x, rtol=1e-6)


def test_logits_are_adjusted_masked_and_picked(exact: Any) -> None:
    rng, x = np.random.default_rng(0), logits(4)
    there = exact.array(x)
    indptr = ints(0, 3, 3, 300, 301)
    ids = np.concatenate([rng.choice(VOCAB, n, False) for n in (3, 297, 1)]).astype(np.int32)
    scale, bias = rng.uniform(0.5, 2, len(ids)).astype(np.float32), rng.standard_normal(len(ids)).astype(np.float32)
    bits = rng.integers(0, 2**32, (2, 20), np.uint32)
    for ops, values in ((REFERENCE, x), (exact, there)):
        ops.adjust(values, indptr, ids, scale, bias)
        ops.mask(values, ints(3, 1), bits)
    np.testing.assert_allclose(there.numpy(), x, rtol=1e-6)
    rows, columns = ints(0, 3, 1, 2), ints(5, VOCAB - 1, 0, 700)
    same_bits(exact.pick(there, rows, columns), there.numpy()[rows, columns])


def test_argmax_and_sums(exact: Any) -> None:
    x = logits(6)
    x[1] = 2.5
    x[2] = -np.inf
    x[3, 400] = np.nan
    x[4, [17, 900]] = 50
    compare(lambda ops, v, out: ops.argmax(v, 6, out), exact, x)
    with np.errstate(all="ignore"):
        compare(lambda ops, v, out: ops.log_sum_exp(v, 5, out), exact, np.delete(x, 3, 0)[:5], np.float32)


def test_top_k(exact: Any) -> None:
    x = np.round(logits(4) * 2) / 2  # many are equal
    ids, values = np.zeros((2, 4, 9), np.int32), np.zeros((2, 4, 9), np.float32)
    REFERENCE.top_k(x, 4, 9, ids[0], values[0])
    exact.top_k(exact.array(x), 4, 9, ids[1], values[1])
    assert ids[0].tolist() == ids[1].tolist()
    np.testing.assert_array_equal(values[0], values[1])
    x[2, 7] = np.nan
    exact.top_k(exact.array(x), 4, 9, ids[1], values[1])
    assert (ids[1][2] == -1).all() and np.isnan(values[1][2]).all() and ids[1][3].tolist() == ids[0][3].tolist()


PARAMETERS = [
    (1.0, 0, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (0.9, 40, 0.6, 0.0),
    (1.0, 0, 1.0, 0.2),
    (1.0, 20, 0.9, 0.1),
]


@pytest.mark.parametrize("room", [4096, 16])
def test_sample(exact: Any, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every combination of cuts, on rows with and without equal values; with room for all candidates and for few."""
    monkeypatch.setattr(cuda_logits, "CANDIDATES", room)
    params = [(*p, u) for p in PARAMETERS for u in (0.0, 0.8)] + [(0.0, 0, 1.0, 0.0, 0.5)] * 2
    x = logits(len(params), seed=4)[:, :200].copy()
    x[1::2] = np.round(x[1::2] * 2) / 2
    x[-1] = -np.inf
    x[5, 100:] = -np.inf
    columns = [np.array(c, np.int32 if i == 1 else np.float32) for i, c in enumerate(zip(*params, strict=True))]
    compare(lambda ops, v, out: ops.sample(v, len(x), *columns, out), exact, x)


# --- memory -----------------------------------------------------------------------------------------------------------------------


def test_inputs_and_tables(exact: Any) -> None:
    inputs = exact.inputs({"a": 1, "b": 70})
    for value in (3, 4):
        inputs.begin()
        inputs.host["a"][0], inputs.host["b"][:] = value, np.arange(70) * value
        inputs.send()
        assert inputs.arrays["a"].tolist() == [value]
        assert inputs.arrays["b"].tolist() == list(range(0, 70 * value, value))
    owner = np.arange(12, dtype=np.int32).reshape(3, 4)
    table = exact.table(owner)
    exact.sync_table(table, owner, ints(2, 0), ints(3, 2))
    assert table.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [8, 9, 10, 0]]
    owner[2, 1] = 77
    exact.sync_table(table, owner, ints(2), ints(4))
    assert table[2].tolist() == [8, 77, 10, 11]


# --- mixtures of experts ------------------------------------------------------------------------------------------------------------

HOWS = {
    "softmax": Routing(),
    "as it is": Routing(normalize=False, scale=2.5),
    "two best of each group": Routing("sigmoid", num_groups=4, top_groups=2),
    "best of each group": Routing(num_groups=4, top_groups=3, group_best=1),
}


def routes_on(ops: Any, num_experts: int, rows: int, k: int) -> Routes:
    ids, order, starts = (ops.empty(shape, "int32") for shape in ((rows, k), (rows * k,), (num_experts + 1,)))
    return Routes(ids, ops.empty((rows, k)), order, starts)


def both_routes(
    ops: Any, logits: Float, k: int, n: int, how: Routing, bias: Any = None, scales: Any = None
) -> tuple[Routes, Routes]:
    routes = routes_on(REFERENCE, logits.shape[1], len(logits), k), routes_on(ops, logits.shape[1], len(logits), k)
    REFERENCE.route(logits, routes[0], ints(n), how=how, bias=bias, scales=scales)
    bias, scales = (None if values is None else ops.array(values) for values in (bias, scales))
    ops.route(ops.array(logits), routes[1], ops.array(ints(n)), how=how, bias=bias, scales=scales)
    return routes


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("num_experts", "k"), [(20, 3), (128, 8)])
def test_route(exact: Any, how: str, num_experts: int, k: int) -> None:
    bias = normal(num_experts, seed=2) * 0.1 if "group" in how else None
    scales = normal(num_experts, seed=3) if how == "as it is" else None
    want, got = both_routes(exact, normal(9, num_experts, seed=k), k, 7, HOWS[how], bias, scales)
    np.testing.assert_array_equal(got.ids.numpy(), want.ids)
    np.testing.assert_allclose(got.weights.numpy(), want.weights, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(got.order.numpy()[: 7 * k], want.order[: 7 * k])
    np.testing.assert_array_equal(got.starts.numpy(), want.starts)


def test_equal_experts_are_chosen_by_id(exact: Any) -> None:
    logits = np.zeros((2, 40), np.float32)
    logits[1, [7, 21, 39]] = 1
    _, got = both_routes(exact, logits, 4, 2, Routing())
    np.testing.assert_array_equal(got.ids.numpy(), [[0, 1, 2, 3], [7, 21, 39, 0]])


@pytest.mark.parametrize(
    ("fmt", "gate"),
    [
        ("f32", "clamped_silu"),
        ("bf16", "gelu"),
        ("q4_1", "clamped_silu"),
        ("q8_0", "silu"),
        ("q6_k", "silu"),
        ("bf16", "relu2"),
        ("q8_0", "relu2"),
    ],
)
def test_experts(pair: Pair, fmt: str, gate: Any) -> None:
    rng, ops = np.random.default_rng(1), pair.ops
    hidden, width = (256, 256) if fmt.endswith("k") else (96, 64)
    parts = [[tensor(rng, fmt, *s) for s in ((width, hidden), (width, hidden), (hidden, width))] for _ in range(5)]
    alone = gate == "relu2"
    banks = [each.pack_experts(5, lambda e: parts[e][int(alone) : 2], gated=not alone) for each in (REFERENCE, ops)]
    downs = [each.pack_experts(5, lambda e: parts[e][2:], gated=False) for each in (REFERENCE, ops)]
    bias = normal(5, 2 * width) if gate == "clamped_silu" else None
    down_bias = normal(5, hidden) if gate == "clamped_silu" else None
    routes = both_routes(ops, normal(12, 5), 2, 9, Routing())
    x = pair.filled(normal(12, hidden, seed=3), (banks[0], banks[1]))
    inner = [each.activation(24, [down]) for each, down in zip((REFERENCE, ops), downs, strict=True)]
    want, got = np.zeros((12, hidden), np.float32), ops.empty((12, hidden))
    REFERENCE.gated_experts(banks[0], x[0], inner[0], routes[0], ints(9), gate=gate, bias=bias)
    there = None if bias is None else ops.array(bias), None if down_bias is None else ops.array(down_bias)
    ops.gated_experts(banks[1], x[1], inner[1], routes[1], ops.array(ints(9)), gate=gate, bias=there[0])
    pair.check(inner[1], inner[0], 18, 2.0)
    inner[0].data[:] = inner[1].data.float().numpy()
    REFERENCE.experts_linear(downs[0], inner[0], want, routes[0], ints(9), bias=down_bias)
    ops.experts_linear(downs[1], inner[1], got, routes[1], ops.array(ints(9)), bias=there[1])
    close(got[:9].numpy(), want[:9], 2 * tolerance(ops))
    assert not got[9:].any()


def test_heads(pair: Pair) -> None:
    rng, ops = np.random.default_rng(2), pair.ops
    parts = [[tensor(rng, "bf16", 40, 72)] for _ in range(3)]
    banks = [each.pack_experts(3, parts.__getitem__, gated=False) for each in (REFERENCE, ops)]
    x = [each.activation(12, [bank], 3) for each, bank in zip((REFERENCE, ops), banks, strict=True)]
    values = normal(12, 216, seed=3)
    ops.store(ops.array(values), x[1], ops.array(ints(9)))
    x[0].data[:] = x[1].data.float().numpy()
    want, got = np.zeros((12, 120), np.float32), ops.empty((12, 120))
    REFERENCE.heads_linear(banks[0], x[0], want, ints(9))
    ops.heads_linear(banks[1], x[1], got, ops.array(ints(9)))
    close(got[:9].numpy(), want[:9], 2 * tolerance(ops))
    assert not got[9:].any()


@cache
def rows_are_apart() -> bool:
    """Whether a row of a product of NumPy's, with which the interpreter multiplies, has the same bits wherever it stands: that depends
    on the processor."""
    rng = np.random.default_rng(0)
    for k, n in ((16, 16), (32, 64), (64, 32), (64, 64)):
        x, w = rng.standard_normal((16, k), np.float32), rng.standard_normal((k, n), np.float32)
        whole = x @ w
        for row in range(16):
            alone = np.zeros_like(x)
            alone[0] = x[row]
            if not np.array_equal((alone @ w)[0], whole[row]):
                return False
    return True


def same_rows(got: Float, want: Float) -> None:
    """The same bits, as far as the interpreter's products let that be seen."""
    if rows_are_apart():
        same_bits(got, want)
    else:
        close(got, want, 1e-6)


def test_rows_of_experts_do_not_depend_on_the_batch(exact: Any) -> None:
    rng = np.random.default_rng(1)
    parts = [[tensor(rng, "q4_1", *s) for s in ((64, 96), (64, 96), (96, 64))] for _ in range(4)]
    bank = exact.pack_experts(4, lambda e: parts[e][:2], gated=True)
    down = exact.pack_experts(4, lambda e: parts[e][2:], gated=False)
    logits, values = normal(20, 4), normal(20, 96)

    def run(some: list[int]) -> Float:
        n = len(some)
        rows = exact.array(ints(n))
        _, routes = both_routes(exact, logits[some], 2, n, Routing())
        x, inner, out = exact.activation(n, [bank]), exact.activation(2 * n, [down]), exact.empty((n, 96))
        exact.store(exact.array(values[some]), x, rows)
        exact.gated_experts(bank, x, inner, routes, rows, gate="silu")
        exact.experts_linear(down, inner, out, routes, rows)
        result: Float = out.numpy()
        return result

    whole = run(list(range(20)))
    for some in ([3], [19, 0], list(range(5, 18))):
        same_rows(run(some), np.ascontiguousarray(whole[some]))


# --- adapters -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(48, 16, 24), (70,)])
def test_low_rank(ops: Any, widths: tuple[int, ...]) -> None:
    """Several adapters in one call, and the same bits for a row alone."""
    rng, k, slots = np.random.default_rng(1), 144, 3
    banks = REFERENCE.adapter_bank(slots, 40, k, widths), ops.adapter_bank(slots, 40, k, widths)
    for slot in range(slots):
        parts = [
            None
            if len(widths) > 1 and (slot + i) % 3 == 2
            else LowRank(
                rng.standard_normal((r, k), np.float32) / 12, rng.standard_normal((width, r), np.float32) / 4, 0.5 + slot
            )
            for i, (width, r) in enumerate(zip(widths, (3, 16, 40), strict=False))
        ]
        there = [None if p is None else replace(p, a=_rounded(ops, p.a), b=_rounded(ops, p.b)) for p in parts]
        REFERENCE.place_adapter(banks[0], slot, REFERENCE.pack_adapter(banks[0], there))
        ops.place_adapter(banks[1], slot, ops.pack_adapter(banks[1], parts))
    x, chosen = _rounded(ops, normal(25, k)), rng.integers(-1, slots, 25).tolist()
    chosen[:18] = [2] * 18
    want = np.zeros((25, sum(widths)), np.float32)
    REFERENCE.low_rank(banks[0], _Rows(x), want, _row_adapters(REFERENCE, chosen, 25, slots))

    def run(rows: list[int]) -> Float:
        activation = ops.activation(25, [ops.pack([dense("w", normal(16, k))])])
        activation.data[: len(rows)] = torch.from_numpy(x[rows]).to(ops.dtype)
        out = ops.empty((25, sum(widths)), "hidden")
        ops.low_rank(banks[1], activation, out, _row_adapters(ops, [chosen[r] for r in rows], 25, slots))
        return host(out).astype(np.float32)[: len(rows)]

    whole = run(list(range(25)))
    close(whole, want, tolerance(ops))
    for row in (0, 17, 24):
        same_rows(run([row]), whole[row : row + 1])


class _Rows:
    """An activation of the reference."""

    def __init__(self, data: Float) -> None:
        self.data = data


def _rounded(ops: Any, values: Float) -> Float:
    rounded: Float = torch.from_numpy(values).to(ops.dtype).float().numpy()
    return rounded


def _row_adapters(ops: Any, slots: list[int], max_rows: int, num_slots: int) -> RowAdapters:
    arrays = {name: np.zeros(size, np.int32) for name, size in row_adapter_sizes(max_rows, num_slots).items()}
    group_rows(ints(*slots), arrays)
    return RowAdapters(**{name: ops.array(values) for name, values in arrays.items()})
