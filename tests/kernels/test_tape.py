"""Op tapes: recording runs nothing, and replaying equals calling, with any op set."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.kernels.reference import ReferenceOps
from sglang.srt.model.op_tape import RECORDED, OpTape

from .support import Float, ints, same_bits, tensor


class Program:
    """A layer of sorts on static buffers."""

    def __init__(self, ops: Any) -> None:
        rng = np.random.default_rng(0)
        self.ops, self.rows, self.ids = ops, ints(0), np.zeros(20, np.int32)
        self.weight = ops.pack([tensor(rng, "q8_0", 64, 64)])
        self.norm = np.ones(64, np.float32)
        self.x, self.delta, self.out = (np.zeros((20, 64), np.float32) for _ in range(3))
        self.activation = ops.activation(20, [self.weight])

    def forward(self) -> None:
        ops = self.ops
        ops.embedding(self.weight, self.ids, self.x, self.rows)
        ops.rms_norm(self.x, self.norm, self.activation, self.rows, eps=1e-5)
        ops.linear(self.weight, self.activation, self.delta, self.rows)
        ops.rms_norm(self.x, self.norm, self.out, self.rows, eps=1e-5, delta=self.delta)
        ops.soft_cap(self.out, self.rows, cap=2.0)

    def inputs(self, rows: int, seed: int) -> None:
        self.rows[0] = rows
        self.ids[:rows] = np.random.default_rng(seed).integers(0, 64, rows)


@pytest.fixture(params=["native", "reference"])
def program(request: pytest.FixtureRequest, ops: Any) -> Program:
    return Program(ops if request.param == "native" else ReferenceOps())


def test_one_tape_serves_every_batch(program: Program) -> None:
    tape = OpTape()
    program.inputs(20, 0)
    with tape.record(program.ops):
        program.forward()
    assert not program.out.any(), "recording must not run anything"
    for rows, seed in ((1, 1), (20, 2), (0, 3), (7, 4)):
        program.inputs(rows, seed)
        program.out[:] = 5
        tape.replay()
        replayed = program.out.copy()
        program.out[:] = 5
        program.forward()  # op by op, now that recording is over
        same_bits(replayed, program.out)
        assert (replayed[rows:] == 5).all()


def test_a_tape_keeps_its_arrays_alive(program: Program) -> None:
    tape = OpTape()
    rows, x, out = ints(2), np.ones((4, 64), np.float32), np.zeros((4, 64), np.float32)
    with tape.record(program.ops):
        program.ops.rms_norm(x[1:3], program.norm * 3, out, rows, eps=0.0)
    del x, rows
    gc.collect()
    junk = [np.full((4, 64), np.nan, np.float32) for _ in range(50)]
    tape.replay()
    np.testing.assert_allclose(out[:2], 3, rtol=1e-6)
    del junk


def test_profile(program: Program) -> None:
    tape = OpTape()
    with tape.record(program.ops):
        program.forward()
    program.inputs(20, 0)
    first = tape.profile()
    assert [name for name, _ in first] == ["embedding", "rms_norm", "linear", "rms_norm", "soft_cap"]
    assert all(ticks > 0 for _, ticks in first)
    second = tape.profile()
    assert all(b > a for (_, a), (_, b) in zip(first, second, strict=True))
    tape.clear_profile()
    assert sum(t for _, t in tape.profile()) < sum(t for _, t in second) * 100


def test_an_error_ends_the_recording(program: Program) -> None:
    tape = OpTape()
    with pytest.raises(KeyError), tape.record(program.ops):
        program.ops.soft_cap(program.out, program.rows, cap=1.0)
        raise KeyError
    program.inputs(3, 0)
    program.forward()
    assert program.out[:3].any()


def test_arguments_are_checked_when_recorded(ops: Any) -> None:
    program = Program(ops)
    other = ops.activation(4, [ops.pack([tensor(np.random.default_rng(0), "f32", 4, 64)])])
    with OpTape().record(ops):
        with pytest.raises(ValueError, match="x was made for weights of another kind"):
            ops.linear(program.weight, other, program.out, program.rows)
        with pytest.raises(ValueError, match="out must be of type float32"):
            ops.linear(program.weight, program.activation, np.zeros((4, 64)), program.rows)
        with pytest.raises(ValueError, match="at least 64 columns"):
            ops.linear(program.weight, program.activation, np.zeros((4, 60), np.float32), program.rows)
        with pytest.raises(ValueError, match="contiguous rows"):
            ops.rms_norm(program.x.T, np.ones(20, np.float32), program.out, program.rows, eps=0.0)
        with pytest.raises(ValueError, match="rows must be of type int32"):
            ops.store(program.x, program.activation, np.zeros(1, np.int64))
        frozen = np.zeros((20, 64), np.float32)
        frozen.setflags(write=False)
        with pytest.raises(ValueError, match="out is not an array"):
            ops.linear(program.weight, program.activation, frozen, program.rows)
        with pytest.raises(ValueError, match="gate must be"):
            gated = ops.pack_gated(*(tensor(np.random.default_rng(0), "q8_0", 64, 64) for _ in range(2)))
            ops.gated_linear(gated, program.activation, program.activation, program.rows, gate="relu")
        with pytest.raises(ValueError, match="out must have at least 128 columns"):
            ops.linear(gated, program.activation, program.out, program.rows)
        with pytest.raises(ValueError, match="bias goes with weights of pack only"):
            both, bias = np.zeros((20, 128), np.float32), np.zeros(128, np.float32)
            ops.linear(gated, program.activation, both, program.rows, bias=bias)


def test_every_op_of_the_forward_pass_is_recorded() -> None:
    """The list for op sets without native recording names ops that exist."""
    assert all(callable(getattr(ReferenceOps, name)) for name in RECORDED)


def test_two_recordings_at_once_are_refused(ops: Any) -> None:
    with OpTape().record(ops), pytest.raises(ValueError, match="recorded already"), OpTape().record(ops):
        pass
    program = Program(ops)
    program.inputs(2, 0)
    result: Float = program.out
    program.forward()
    assert result[:2].any()


AT_LOAD = {
    "activation",
    "adapter_bank",
    "array",
    "can_stack",
    "empty",
    "float_activation",
    "inputs",
    "kv_bytes_per_token",
    "kv_layers",
}
AT_LOAD |= {
    "kv_runs",
    "pack",
    "pack_adapter",
    "pack_experts",
    "pack_gated",
    "packed_bits",
    "place_adapter",
    "table",
    "touch_kv",
}
TRANSFERS = {"bound", "bound_step", "fetch", "finish", "sync_table", "write"}
ON_LOGITS = {"adjust", "argmax", "log_sum_exp", "mask", "pick", "sample", "top_k"}
OF_ENCODERS = {"rotate", "segment_attention"}


def test_every_op_is_recorded_or_has_its_reason() -> None:
    """One that is missing in RECORDED would run while a step is recorded, and never again."""
    ops = {name for kind in Ops.__mro__ for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}
    assert ops == {*RECORDED, *AT_LOAD, *TRANSFERS, *ON_LOGITS, *OF_ENCODERS}
