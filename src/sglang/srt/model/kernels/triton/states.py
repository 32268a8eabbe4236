"""Ops on states of recurrent and convolutional layers (kernels/states.py). A program takes all rows of a request in order, so a result does
not depend on how a text was cut into steps."""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import activation, round_to


@triton.jit
def _seen(
    x, before, state, source, start, i, at, inside, x_stride, before_stride, channels, TAPS: tl.constexpr, BEFORE: tl.constexpr
):
    """What the convolution sees of row i of a request; before its first row that is the state's."""
    row = (start + i).to(tl.int64)
    is_new = row >= start
    old = (source.to(tl.int64) * (TAPS - 1) + TAPS - 1 + row - start) * channels + at
    from_state = tl.load(state + old, mask=inside & (row < start) & (source >= 0), other=0.0)
    u = tl.load(x + row * x_stride + at, mask=inside & is_new, other=0.0).to(tl.float32)
    if BEFORE:
        u = tl.load(before + row * before_stride + at, mask=inside & is_new, other=0.0).to(tl.float32) * u
    return tl.where(is_new, u, from_state)


@triton.jit
def short_conv_kernel(
    x, weight, bias, before, after, state, out, num_reqs, q_start, q_len, source_of, target_of, save_starts, save_rows, save_slots,
    channels, x_stride, before_stride, after_stride, out_stride,
    TAPS: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.short_conv, where out is other memory than x."""
    r = tl.program_id(0)
    if r >= tl.load(num_reqs):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    start, length, source = tl.load(q_start + r), tl.load(q_len + r), tl.load(source_of + r)
    for i in range(length):
        y = tl.zeros([BLOCK], tl.float32)
        for j in tl.static_range(TAPS):
            u = _seen(
                x, before, state, source, start, i - TAPS + 1 + j, at, inside, x_stride, before_stride, channels, TAPS, BEFORE
            )
            y += u * tl.load(weight + j * channels + at, mask=inside, other=0.0)
        if BIAS:
            y += tl.load(bias + at, mask=inside, other=0.0)
        if SILU:
            y = activation(y, "silu")
        row = (start + i).to(tl.int64)
        if AFTER:
            y *= tl.load(after + row * after_stride + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * out_stride + at, round_to(y, out.dtype.element_ty), mask=inside)
    first, last = tl.load(save_starts + r), tl.load(save_starts + r + 1)
    for s in range(first, last + 1):  # the last is the target, which may be the source: older values are written first
        is_save = first * 0 + s < last
        done = tl.where(is_save, tl.load(save_rows + s, mask=is_save, other=0), length)
        slot = tl.where(is_save, tl.load(save_slots + s, mask=is_save, other=0), tl.load(target_of + r))
        for j in tl.static_range(TAPS - 1):
            u = _seen(
                x,
                before,
                state,
                source,
                start,
                done - TAPS + 1 + j,
                at,
                inside,
                x_stride,
                before_stride,
                channels,
                TAPS,
                BEFORE,
            )
            tl.store(state + (slot.to(tl.int64) * (TAPS - 1) + j) * channels + at, u, mask=inside)


@triton.jit
def delta_rule_kernel(
    qkv, gates, decay, dt_bias, state, out, num_reqs, q_start, q_len, source_of, target_of, save_starts, save_rows, save_slots,
    num_k_heads, num_v_heads, k_dim, v_dim, qkv_stride, gates_stride, out_stride, q_scale,
    TURNS: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.delta_rule: some columns of one head's state."""
    r, head = tl.program_id(0), tl.program_id(1)
    if r >= tl.load(num_reqs):
        return
    keys, columns = tl.arange(0, KEYS), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    in_keys, in_columns = keys < k_dim, columns < v_dim
    k_head = head % num_k_heads if TURNS else head // (num_v_heads // num_k_heads)
    place = head * k_dim * v_dim + keys[:, None] * v_dim + columns[None, :]
    inside = in_keys[:, None] & in_columns[None, :]
    size = num_v_heads * k_dim * v_dim
    start, length, source = tl.load(q_start + r), tl.load(q_len + r), tl.load(source_of + r)
    s = tl.load(state + source.to(tl.int64) * size + place, mask=inside & (source >= 0), other=0.0)
    save, last = tl.load(save_starts + r), tl.load(save_starts + r + 1)
    rate, shift = tl.load(decay + head), tl.load(dt_bias + head)
    for i in range(length):
        row = (start + i).to(tl.int64)
        x = qkv + row * qkv_stride
        q = tl.load(x + k_head * k_dim + keys, mask=in_keys, other=0.0).to(tl.float32)
        k = tl.load(x + (num_k_heads + k_head) * k_dim + keys, mask=in_keys, other=0.0).to(tl.float32)
        v = tl.load(x + 2 * num_k_heads * k_dim + head * v_dim + columns, mask=in_columns, other=0.0).to(tl.float32)
        q = q * (q_scale / tl.sqrt(tl.sum(q * q, 0) + 1e-6))
        k = k * (1.0 / tl.sqrt(tl.sum(k * k, 0) + 1e-6))
        beta = 1.0 / (1.0 + tl.exp(-tl.load(gates + row * gates_stride + head).to(tl.float32)))
        a = tl.load(gates + row * gates_stride + num_v_heads + head).to(tl.float32) + shift
        keep = tl.exp(rate * tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0)))))
        s = keep * s
        s += k[:, None] * (beta * (v - tl.sum(s * k[:, None], 0)))[None, :]
        tl.store(out + row * out_stride + head * v_dim + columns, tl.sum(s * q[:, None], 0), mask=in_columns)
        wanted = save < last
        is_here = wanted & (tl.load(save_rows + save, mask=wanted, other=0) + start == row + 1)
        slot = tl.load(save_slots + save, mask=wanted, other=0).to(tl.int64)
        tl.store(state + slot * size + place, s, mask=inside & is_here)
        save += is_here.to(tl.int32)
    tl.store(state + tl.load(target_of + r).to(tl.int64) * size + place, s, mask=inside)


@triton.jit
def state_space_kernel(
    xbc, gates, decay, dt_bias, skip, state, out, num_reqs, q_start, q_len, source_of, target_of, save_starts, save_rows, save_slots,
    num_groups, num_heads, state_dim, head_dim, xbc_stride, gates_stride, out_stride, shortest, longest,
    STATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.state_space: some columns of one head's state."""
    r, head = tl.program_id(0), tl.program_id(1)
    if r >= tl.load(num_reqs):
        return
    states, columns = tl.arange(0, STATES), tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    in_states, in_columns = states < state_dim, columns < head_dim
    group = head // (num_heads // num_groups)
    place = head * state_dim * head_dim + states[:, None] * head_dim + columns[None, :]
    inside = in_states[:, None] & in_columns[None, :]
    size, width = num_heads * state_dim * head_dim, num_heads * head_dim
    start, length, source = tl.load(q_start + r), tl.load(q_len + r), tl.load(source_of + r)
    s = tl.load(state + source.to(tl.int64) * size + place, mask=inside & (source >= 0), other=0.0)
    save, last = tl.load(save_starts + r), tl.load(save_starts + r + 1)
    rate, shift, through = tl.load(decay + head), tl.load(dt_bias + head), tl.load(skip + head)
    for i in range(length):
        row = (start + i).to(tl.int64)
        at = xbc + row * xbc_stride
        x = tl.load(at + head * head_dim + columns, mask=in_columns, other=0.0).to(tl.float32)
        b = tl.load(at + width + group * state_dim + states, mask=in_states, other=0.0).to(tl.float32)
        c = tl.load(at + width + (num_groups + group) * state_dim + states, mask=in_states, other=0.0).to(tl.float32)
        a = tl.load(gates + row * gates_stride + head).to(tl.float32) + shift
        step = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
        step = tl.minimum(tl.maximum(step, shortest), longest)
        s = tl.exp(rate * step) * s + b[:, None] * (step * x)[None, :]
        tl.store(out + row * out_stride + head * head_dim + columns, tl.sum(s * c[:, None], 0) + through * x, mask=in_columns)
        wanted = save < last
        is_here = wanted & (tl.load(save_rows + save, mask=wanted, other=0) + start == row + 1)
        slot = tl.load(save_slots + save, mask=wanted, other=0).to(tl.int64)
        tl.store(state + slot * size + place, s, mask=inside & is_here)
        save += is_here.to(tl.int32)
    tl.store(state + tl.load(target_of + r).to(tl.int64) * size + place, s, mask=inside)


@triton.jit
def selective_scan_kernel(
    x, dt, bc, z, decay, dt_bias, skip, state, out, num_reqs, q_start, q_len, source_of, target_of, save_starts, save_rows, save_slots,
    state_dim, channels, x_stride, dt_stride, bc_stride, z_stride, out_stride, STATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.selective_scan: some channels."""
    r = tl.program_id(0)
    if r >= tl.load(num_reqs):
        return
    states, columns = tl.arange(0, STATES), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_states, in_columns = states < state_dim, columns < channels
    place, inside = states[:, None] * channels + columns[None, :], in_states[:, None] & in_columns[None, :]
    size = state_dim * channels
    start, length, source = tl.load(q_start + r), tl.load(q_len + r), tl.load(source_of + r)
    s = tl.load(state + source.to(tl.int64) * size + place, mask=inside & (source >= 0), other=0.0)
    rates = tl.load(decay + place, mask=inside, other=0.0)
    shift, through = tl.load(dt_bias + columns, mask=in_columns, other=0.0), tl.load(skip + columns, mask=in_columns, other=0.0)
    save, last = tl.load(save_starts + r), tl.load(save_starts + r + 1)
    for i in range(length):
        row = (start + i).to(tl.int64)
        u = tl.load(x + row * x_stride + columns, mask=in_columns, other=0.0).to(tl.float32)
        b = tl.load(bc + row * bc_stride + states, mask=in_states, other=0.0).to(tl.float32)
        c = tl.load(bc + row * bc_stride + state_dim + states, mask=in_states, other=0.0).to(tl.float32)
        a = tl.load(dt + row * dt_stride + columns, mask=in_columns, other=0.0).to(tl.float32) + shift
        step = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
        s = tl.exp(rates * step[None, :]) * s + b[:, None] * (step * u)[None, :]
        g = activation(tl.load(z + row * z_stride + columns, mask=in_columns, other=0.0).to(tl.float32), "silu")
        y = (tl.sum(s * c[:, None], 0) + through * u) * g
        tl.store(out + row * out_stride + columns, round_to(y, out.dtype.element_ty), mask=in_columns)
        wanted = save < last
        is_here = wanted & (tl.load(save_rows + save, mask=wanted, other=0) + start == row + 1)
        slot = tl.load(save_slots + save, mask=wanted, other=0).to(tl.int64)
        tl.store(state + slot * size + place, s, mask=inside & is_here)
        save += is_here.to(tl.int32)
    tl.store(state + tl.load(target_of + r).to(tl.int64) * size + place, s, mask=inside)


@triton.jit
def gated_norm_kernel(
    x, gate, weight, out, rows, head, x_stride, gate_stride, out_stride, eps,
    WIDE: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.gated_norm: one program for each row and group."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    columns = tl.arange(0, BLOCK)
    inside, at = columns < head, tl.program_id(1) * head + columns
    values = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    g = activation(g, "silu")
    if FIRST:
        values *= g
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / head + eps)
    y = values * scale * tl.load(weight + (at if WIDE else columns), mask=inside, other=0.0)
    if not FIRST:
        y *= g
    tl.store(out + row * out_stride + at, round_to(y, out.dtype.element_ty), mask=inside)


@triton.jit
def sigmoid_gate_kernel(x, gate, out, rows, width, x_stride, gate_stride, out_stride, BLOCK: tl.constexpr):
    """ops.sigmoid_gate."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + at, round_to(values / (1.0 + tl.exp(-g)), out.dtype.element_ty), mask=inside)
