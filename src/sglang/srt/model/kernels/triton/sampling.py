"""ops.sample without sorting and without the host: one program per row, two kernels.

    candidates    two passes over the row: its largest values, at most ROOM of them, are collected in order of ids
    sample        all cuts and the sample, among the candidates; over the whole row where the candidates do not suffice

The largest values are found by a histogram of distances from the maximum, in units of the temperature and bins of 1 / 8: as many whole
bins are taken as there is room for. All values left out are smaller than those taken, so cuts that fall among the candidates are the
cuts of the row; `_settled` says when they do, which is nearly always.

"In descending order" needs no sorting, only cuts. Logits are mapped to integers of the same order; a cut is found by bisection over
their 32 bits, each step one pass over the candidates (which are in the cache):

    top_k    the key whose rank reaches k            counts of keys >= cut
    top_p    the key where the mass reaches p        masses of keys >= cut, relative to exp(0) of the best
    sample   the key where the mass passes uniform   then the j-th of equal keys by id

Equal keys have equal probabilities, so a cut inside a run of them is a number of them, lowest ids first.
"""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _key(x):
    """An int32 that orders as the float does; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    """The float of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _above(x, vocab, cut, top, temperature, floor, BLOCK: tl.constexpr):
    """(count, mass) of the keys >= cut whose probability relative to the best is at least `floor`. cut: int64, scalar."""
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < vocab, other=float("-inf"))
        p = tl.exp((value - top) / temperature)
        taken = (at < vocab) & (_key(value).to(tl.int64) >= cut) & (p >= floor)
        count += taken.to(tl.int32)
        mass += tl.where(taken, p, 0.0)
    return tl.sum(count, axis=0), tl.sum(mass, axis=0)


@triton.jit
def _middle(low, high):
    """The middle of low < high, rounded up."""
    return low + (high - low + 1) // 2


@triton.jit
def candidates_kernel(
    x_all, greedy, temperatures, values, ids, counts, sums, vocab, stride, BINS: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For each row that is sampled: values and ids of its candidates, [rows, ROOM], their number, and of its sums, [rows, 2],
    the mass of the whole row and a probability (relative to the best) that no column left out exceeds."""
    row = tl.program_id(0).to(tl.int64)
    x = x_all + row * stride
    best = tl.load(greedy + row)
    temperature = tl.load(temperatures + row)
    if (best < 0) | (temperature == 0.0):
        return
    top = tl.load(x + best)
    lane = tl.arange(0, BLOCK)
    number = tl.arange(0, BINS)
    bins = tl.zeros([BINS], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        at = start + lane
        value = tl.load(x + at, mask=at < vocab, other=float("-inf"))
        bins += tl.histogram(_bin(value, top, temperature, BINS), BINS)
        mass += tl.exp((value - top) / temperature)
    bins = tl.where(number == BINS - 1, ROOM + 1, bins)  # the last holds all that is far away: never taken
    taken = (tl.cumsum(bins, axis=0) <= ROOM).to(tl.int32)
    num_bins = tl.sum(taken, axis=0)
    tl.store(counts + row, tl.sum(bins * taken, axis=0))
    tl.store(sums + 2 * row, tl.sum(mass, axis=0))
    tl.store(sums + 2 * row + 1, tl.exp(-num_bins.to(tl.float32) / 8) * 1.001)
    before = 0
    for start in range(0, vocab, BLOCK):
        at = start + lane
        value = tl.load(x + at, mask=at < vocab, other=float("-inf"))
        mine = ((_bin(value, top, temperature, BINS) < num_bins) & (at < vocab)).to(tl.int32)
        place = row * ROOM + before + tl.cumsum(mine, axis=0) - 1
        tl.store(values + place, value, mask=mine > 0)
        tl.store(ids + place, at, mask=mine > 0)
        before += tl.sum(mine, axis=0)


@triton.jit
def _bin(value, top, temperature, BINS: tl.constexpr):
    """The distance below the best, in eighths of a temperature; monotone in the value."""
    distance = (top - value) / temperature * 8.0
    return tl.where(distance < BINS - 1, distance, BINS - 1.0).to(tl.int32)  # the last one also for inf - inf


@triton.jit
def _settled(values, count, border, total, top, temperature, top_k, top_p, min_p, uniform, vocab, BLOCK: tl.constexpr):
    """Whether all cuts and the sample fall among the candidates."""
    if (top_k > 0) & (top_k < vocab):
        settled = top_k <= count  # and what is kept of those is among them
    else:
        wanted = tl.where(top_p < 1.0, top_p, uniform) * total
        none = tl.full([], -2147483648, tl.int64)
        num, mass = _above(values, count, none, top, temperature, 0.0, BLOCK)
        settled = (min_p > border) | ((mass > wanted) & ((min_p == 0.0) | (top_p < 1.0)))
    return settled


@triton.jit
def sample_kernel(
    x_all, greedy, temperatures, top_ks, top_ps, min_ps, uniforms, values, ids, counts, sums, out, row_len, stride,
    ROOM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.sample. greedy: what argmax said of each row; the rest of what candidates_kernel made."""
    row = tl.program_id(0).to(tl.int64)
    x = x_all + row * stride
    best = tl.load(greedy + row)
    tl.store(out + row, best)
    if best < 0:  # NaN
        return
    top = tl.load(x + best)
    if top == float("-inf"):
        tl.store(out + row, -1)
        return
    temperature = tl.load(temperatures + row)
    if temperature == 0.0:
        return
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    min_p = tl.load(min_ps + row)
    uniform = tl.load(uniforms + row)
    none = tl.full([], -2147483648, tl.int64)
    best_key = tl.max(_key(tl.full([1], 0.0, tl.float32) + top), axis=0).to(tl.int64)

    # from here on the row is its candidates, if they settle it
    mass = tl.load(sums + 2 * row)
    count = tl.load(counts + row)
    border = tl.load(sums + 2 * row + 1)
    mine = values + row * ROOM
    few = _settled(mine, count, border, mass, top, temperature, top_k, top_p, min_p, uniform, row_len, BLOCK)
    vocab = row_len
    if few:
        x = mine
        vocab = count

    # cut: the lowest key kept; ties: how many of its equals are kept; mass: of all that is kept
    cut = none
    ties = vocab
    if (top_k > 0) & (top_k < row_len):
        low, high = none, best_key
        while low < high:
            middle = _middle(low, high)
            count, mass = _above(x, vocab, middle, top, temperature, 0.0, BLOCK)
            if count >= top_k:
                low = middle
            else:
                high = middle - 1
        cut = low
        count, mass = _above(x, vocab, cut + 1, top, temperature, 0.0, BLOCK)
        ties = top_k - count
        mass += ties * _weight(cut, top, temperature)
    if top_p < 1.0:
        goal = top_p * mass
        low, high = cut, best_key
        while low < high:
            middle = _middle(low, high)
            count, mass = _above(x, vocab, middle, top, temperature, 0.0, BLOCK)
            if mass >= goal:
                low = middle
            else:
                high = middle - 1
        count, mass = _above(x, vocab, low + 1, top, temperature, 0.0, BLOCK)
        weight = _weight(low, top, temperature)
        wanted = tl.maximum(tl.ceil((goal - mass) / tl.maximum(weight, 1e-38)), 1.0)
        if low > cut:
            ties = vocab
        cut = low
        ties = tl.minimum(ties, tl.minimum(wanted, vocab).to(tl.int32))
        mass += ties * weight
    floor = 0.0
    if min_p > 0.0:
        floor = min_p
        count, kept = _above(x, vocab, cut + 1, top, temperature, floor, BLOCK)
        weight = _weight(cut, top, temperature)
        if weight >= floor:
            equal, all_mass = _above(x, vocab, cut, top, temperature, floor, BLOCK)
            kept += tl.minimum(ties, equal - count) * weight
        mass = kept

    target = uniform * mass
    low, high = cut, best_key
    while low < high:
        middle = _middle(low, high)
        count, mass = _above(x, vocab, middle, top, temperature, floor, BLOCK)
        if mass > target:
            low = middle
        else:
            high = middle - 1
    # rounding may leave the sample beyond the last key that is kept; `low` may then be no key at all: take the next one up
    equal, mass = _above(x, vocab, low, top, temperature, floor, BLOCK)
    count, mass = _above(x, vocab, low + 1, top, temperature, floor, BLOCK)
    if equal == count:
        low = _lowest_key(x, vocab, low, top, temperature, floor, BLOCK)
        equal, mass = _above(x, vocab, low, top, temperature, floor, BLOCK)
        count, mass = _above(x, vocab, low + 1, top, temperature, floor, BLOCK)
    run = equal - count
    if low == cut:
        run = tl.minimum(run, ties)
    step = tl.floor((target - mass) / tl.maximum(_weight(low, top, temperature), 1e-38))
    nth = tl.minimum(tl.maximum(step, 0.0), run - 1.0).to(tl.int32)
    column = _nth_equal(x, vocab, low, nth, BLOCK)
    if few:
        column = tl.load(ids + row * ROOM + column)
    tl.store(out + row, column)


@triton.jit
def _weight(key, top, temperature):
    """The probability of a key relative to the best; 0 for what is no number."""
    value = _value(key.to(tl.int32))
    return tl.where(value >= float("-inf"), tl.exp((value - top) / temperature), 0.0)


@triton.jit
def _lowest_key(x, vocab, cut, top, temperature, floor, BLOCK: tl.constexpr):
    """The lowest key of the row that is at least `cut` and probable enough."""
    lowest = tl.full([BLOCK], 2147483647, tl.int32)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < vocab, other=float("-inf"))
        key = _key(value)
        taken = (at < vocab) & (key.to(tl.int64) >= cut) & (tl.exp((value - top) / temperature) >= floor)
        taken = taken & (value > float("-inf"))
        lowest = tl.minimum(lowest, tl.where(taken, key, 2147483647))
    return tl.min(lowest, axis=0).to(tl.int64)


@triton.jit
def _nth_equal(x, vocab, cut, nth, BLOCK: tl.constexpr):
    """The id of the nth column, from 0, with this key."""
    found = tl.full([BLOCK], 2147483647, tl.int32)
    before = 0
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < vocab, other=float("-inf"))
        equal = ((at < vocab) & (_key(value).to(tl.int64) == cut)).to(tl.int32)
        rank = before + tl.cumsum(equal, axis=0) - 1
        found = tl.minimum(found, tl.where((equal > 0) & (rank == nth), at, 2147483647))
        before += tl.sum(equal, axis=0)
    return tl.min(found, axis=0)
