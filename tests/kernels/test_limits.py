"""The loops that benchmarks measure the machine's limits with do what they count, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import kernels


@pytest.mark.parametrize("kind", kernels.KINDS)
def test_operations_are_counted(ops: Any, kind: str) -> None:
    what = kernels.KINDS[kind]
    assert all(np.isfinite(found := ops.runtime.peak(what + variant, 50)) and found > 0 for variant in kernels.VARIANTS)


def test_shares_are_of_the_nearest_limit() -> None:
    limits = kernels.Limits({"int8": 100.0, "float32": 10.0}, bandwidth=50.0, clock=1.0, per_cycle={})
    work = kernels.Work()
    work.add(25.0, "int8", 60.0)
    assert limits.share(work, 1.0).split() == ["60%", "of", "the", "int8", "peak"]
    assert limits.share(work, 2.0).split()[0] == "30%"
    work.add(25.0)
    assert limits.share(work, 1.0).split() == ["100%", "of", "read", "bandwidth"]
    work.add(0.0, "float32", 20.0)
    assert limits.share(work, 4.0).split() == ["50%", "of", "the", "float32", "peak"]
    assert limits.share(kernels.Work(), 1.0) == ""


def test_every_op_of_a_step_has_its_work(ops: Any) -> None:
    shape = kernels.SHAPES["tiny"]
    model = kernels.Model(ops, shape, "q4_1", max_rows=40, max_reqs=2, context_len=64)
    weight = model.layers[0][0]
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    work = kernels.work_of(model, "linear", [(3, 10), (1, 20)], weight, "int4")
    assert work.num_bytes == weight.num_bytes and work.ops == {"int4": 2.0 * 4 * shape.hidden * qkv}
    head = kernels.work_of(model, "linear", [(3, 10), (1, 20)], model.head, "int8")
    assert head.ops == {"int8": 2.0 * 2 * shape.hidden * shape.vocab}
    attention = kernels.work_of(model, "attention", [(3, 10), (1, 20)], None, "int4")
    assert attention.ops == {"float32": 4.0 * (8 + 9 + 10 + 20) * shape.heads * shape.head_dim}
    model.set_step([(1, 10)])
    model.tape.replay()
    names = {name for name, _ in model.tape.profile()}
    idle = {name for name in names if not kernels.work_of(model, name, [(1, 10)], None, "int4").num_bytes}
    assert idle <= {"linear", "gated_linear", "attention_finish"}


def test_formats_name_their_kernels() -> None:
    kinds = {fmt: kernels.kind_of(fmt) for fmt in ("q4_1", "q4_k", "q8_0", "q6_k", "f16", "bf16", "f32")}
    assert list(kinds.values()) == ["int4", "int4", "int8", "int8", "float32", "float32", "float32"]
