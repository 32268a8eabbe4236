// Grouped-query attention over paged KV, for any mix of decode and extend rows.
//
// Numerics, the same for every row whatever shares the call: KV is cut into chunks at absolute multiples of kChunk. Inside a
// chunk a score is one FMA chain over the head dimension; weights are 2^(score - largest visible score of the chunk); their
// sum goes lane by lane in ascending order and then down a fixed tree; the weighted V is one FMA chain over ascending
// positions. Chunks end as (V, max, sum) and are merged in ascending order. Positions that a row does not see have weight 0, so
// sharing a register tile with rows that do see them changes nothing.
//
// Work: a tile is a few tokens of a request under one KV head. Where there are enough tiles, one unit of work is a tile over
// all its chunks. Where there are few (decode), a unit is a tile over one chunk, the partial results go to memory, and
// attention_finish merges them.
#pragma once

namespace ISA {

// A partial result: weighted V [dim], then largest score, then sum of weights, padded to a whole vector.
static ALWAYS size_t part_size(int dim) { return size_t(dim) + 16; }

// Scores are in bits: queries are multiplied by log2 e when they are fetched, so that a weight is a power of two.
constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0 to 1.6e-7 of it; exactly 1 at 0, 0 below -150.
static ALWAYS F exp2_neg(F x) {
  x = vmax(x, fset(-150.f));
  const F n = vround(x), r = sub(x, n);
  F p = fset(0.0013264714f);
  p = fma(p, r, fset(0.0096715130f));
  p = fma(p, r, fset(0.055507340f));
  p = fma(p, r, fset(0.24022242f));
  p = fma(p, r, fset(0.69314700f));
  p = fma(p, r, fset(1.f));
  return scale2(p, n);
}

static ALWAYS void merge_by(float* a, const float* b, float e, int dim) {      // e: 2^-(difference of the largest scores)
  const float ma = a[dim], mb = b[dim], fa = ma >= mb ? 1.f : e, fb = mb >= ma ? 1.f : e;
  for (int d = 0; d < dim; d += 16) fstore(a + d, fma(fload(a + d), fset(fa), mul(fload(b + d), fset(fb))));
  alignas(64) float l[16];             // the sums by the same instructions: the compiler must not choose
  fstore(l, fma(fset(a[dim + 1]), fset(fa), mul(fset(b[dim + 1]), fset(fb))));
  a[dim] = ma > mb ? ma : mb;
  a[dim + 1] = l[0];
}
static void merge(float* a, const float* b, int dim) {
  const float gap = a[dim] - b[dim];
  alignas(64) float e[16];
  fstore(e, exp2_neg(fset(gap > 0 ? -gap : gap)));
  merge_by(a, b, e[0], dim);
}
// n <= 16 rows at once, those of `seen`; a row without a sum has nothing yet.
static ALWAYS void merge_rows(float* a, const float* b, int n, unsigned seen, int dim) {
  const size_t ld = part_size(dim);
  alignas(64) float e[16] = {};
  for (int r = 0; r < n; r++) {
    const float gap = a[r * ld + dim] - b[r * ld + dim];
    e[r] = gap > 0 ? -gap : gap;
  }
  fstore(e, exp2_neg(fload(e)));
  for (int r = 0; r < n; r++, a += ld, b += ld) {
    if (!(seen >> r & 1)) continue;
    if (a[dim + 1] == 0) __builtin_memcpy(a, b, ld * 4);
    else merge_by(a, b, e[r], dim);
  }
}
// `sink`, or null: a score that takes part in the sum and has no V. Adding zero turns -0 into 0, which underflow could produce in one
// batch and not in another.
static void normalize(const float* a, const float* sink, float* out, int dim, int head) {
  float sum = a[dim + 1];
  if (sink) {
    alignas(64) float e[16];
    fstore(e, exp2_neg(vmin(fset(*sink * kLog2E - a[dim]), fset(126.f))));
    sum += e[0];
  }
  const F inv = fset(1.f / sum);
  for (int d = 0; d < head; d += 16) store_up_to(out + d, add(mul(fload(a + d), inv), fzero()), head - d);
}

// How the requests of a step are cut into units. `used` counts entries of the partial buffer.
struct Cut {
  int tiles, tile_tokens, first_chunk, chunks, units, entry;   // chunks: units of a tile and head; entry: -1 if not split
};
static ALWAYS int tile_tokens(const AttentionArgs& a, int num_rows) {
  const int grp = a.num_heads / a.kv.heads;
  return clamp((num_rows * grp > 1024 && a.kv.dim <= 256 ? 192 : 96) / grp, 1, 64);          // more would not fit the scratch
}
static ALWAYS Cut cut(const AttentionArgs& a, int i, int threads, int* used) {
  const int ql = a.meta.q_len[i], kv = a.meta.seq_lens[i], pos0 = kv - ql;
  Cut r;
  r.tile_tokens = tile_tokens(a, ql);
  r.tiles = (ql + r.tile_tokens - 1) / r.tile_tokens;
  r.first_chunk = a.window > 0 && pos0 - a.window + 1 > 0 ? (pos0 - a.window + 1) / kChunk : 0;
  r.chunks = 1;
  r.entry = -1;
  const int chunks = kv > 0 ? (kv - 1) / kChunk + 1 - r.first_chunk : 0;
  if (int64_t(r.tiles) * a.kv.heads * imin(*a.meta.num_reqs, 1024) < 8 * threads && chunks > 1 && size_t(*used) + size_t(ql) * chunks <= size_t(a.part_entries)) {
    r.chunks = chunks;
    r.entry = *used;
    *used += ql * chunks;
  }
  r.units = r.tiles * a.kv.heads * r.chunks;
  return r;
}

// The thread's scratch.
struct Scratch {
  float *q, *total, *part, *score, *k32, *v32;
  Blocks at;
};
static ALWAYS void carve(Scratch& s, char* p, int dim, int rows) {
  auto take = [&](size_t n) { char* r = p; p += (n + 63) / 64 * 64; return r; };
  s.q = reinterpret_cast<float*>(take(size_t(rows) * dim * 4));
  s.total = reinterpret_cast<float*>(take(rows * part_size(dim) * 4));
  s.part = reinterpret_cast<float*>(take(kAttR * part_size(dim) * 4));
  s.score = reinterpret_cast<float*>(take(size_t(kAttR) * kChunk * 4));
  s.k32 = reinterpret_cast<float*>(take(size_t(kChunk) * dim * 4));
  s.v32 = reinterpret_cast<float*>(take(size_t(kChunk) * dim * 4));
  s.at.k_room = reinterpret_cast<uint8_t*>(take(size_t(kChunk) * dim * 2));
  s.at.v_room = reinterpret_cast<uint8_t*>(take(size_t(kChunk) * dim * 2));
  s.at.scale_room = reinterpret_cast<float*>(take(size_t(kChunk) * 2 * 4));
}

// Blocks b0 .. b1 as floats. kAttP blocks of K lie side by side, [dim][kAttP][16], so that a register tile reads one stream.
static ALWAYS float* wide_k(const Scratch& s, int b, int dim) { return s.k32 + size_t(b / kAttP * kAttP) * kRun * dim + b % kAttP * kRun; }
template <class E> static NOINLINE void widen_blocks(const Scratch& s, int b0, int b1, int dim) {
  for (int b = b0; b < b1; b++) {
    auto in = [](const uint8_t* p) { return reinterpret_cast<const E*>(p); };
    const int then = imin(b + 1, b1 - 1);
    const E *k = in(s.at.k[b]), *v = in(s.at.v[b]), *next_k = in(s.at.k[then]), *next_v = in(s.at.v[then]);
    float *to_k = wide_k(s, b, dim), *to_v = s.v32 + size_t(b) * kRun * dim;
    for (int d = 0; d < dim; d++) {
      if (d % kLine<E> == 0) prefetch(next_k + d * kRun), prefetch(next_v + d * kRun);
      fstore(to_k + d * (kAttP * kRun), wide(k + d * kRun));
      fstore(to_v + d * kRun, wide(v + d * kRun));
    }
  }
}
static ALWAYS void widen(const KVView& kv, const Scratch& s, int b0, int b1) {
  if (kv.form == kKVHalf) widen_blocks<Half>(s, b0, b1, kv.dim);
  else if (kv.form == kKVInt8) widen_blocks<Int8>(s, b0, b1, kv.dim);
  else widen_blocks<E4M3>(s, b0, b1, kv.dim);
}

// Scores of R rows against P blocks.
template <class E, int R, int P>
static ALWAYS void scores(const float* q, int dim, const uint8_t* const* kp, const uint8_t* const* vp, float* out) {
  F a[P][R];
  UNROLL for (int p = 0; p < P; p++) UNROLL for (int r = 0; r < R; r++) a[p][r] = fzero();
  const E* k[P];
  UNROLL for (int p = 0; p < P; p++) k[p] = reinterpret_cast<const E*>(kp[p]);
  for (int d = 0; d < dim; d++) {
    F x[P];
    UNROLL for (int p = 0; p < P; p++) {
      x[p] = wide(k[p] + d * kRun);
      if (d % kLine<E> == 0) prefetch(vp[p] + size_t(d) * kRun * sizeof(E));
    }
    UNROLL for (int r = 0; r < R; r++) {
      const F y = fset(q[r * dim + d]);
      UNROLL for (int p = 0; p < P; p++) a[p][r] = fma(y, x[p], a[p][r]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) fstore(out + r * kChunk + p * kRun, a[p][r]);
}

// The same against widened blocks. Not inlined, so that all registers are for the tile.
template <int R, int P> static NOINLINE void wide_scores(const float* q, const float* k, int dim, float* out) {
  F a[R][P];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) a[r][p] = fzero();
  for (const float* end = q + dim; q < end; q++, k += kAttP * kRun) {
    F x[P];
    UNROLL for (int p = 0; p < P; p++) x[p] = fload(k + p * kRun);
    UNROLL for (int r = 0; r < R; r++) {
      const F y = fset(q[r * dim]);
      UNROLL for (int p = 0; p < P; p++) a[r][p] = fma(y, x[p], a[r][p]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) fstore(out + r * kChunk + p * kRun, a[r][p]);
}

// Scores of one row to weights. [lo, hi): what it sees of the chunk; blocks b0 .. b1 hold scores. Returns max and sum. With scales,
// those of K multiply the scores, and those of V the weights, after these have been added up.
template <bool SCALED>
static ALWAYS void soften(float* s, const float* const* scales, int b0, int b1, int lo, int hi, float cap, float* max_out, float* sum_out) {
  const int w0 = clamp((lo + kRun - 1) / kRun, b0, b1), w1 = clamp(hi / kRun, w0, b1);        // blocks seen whole
  auto each = [&](auto edge, auto inner) {
    for (int b = b0; b < w0; b++) edge(b);
    for (int b = w0; b < w1; b++) inner(b);
    for (int b = w1; b < b1; b++) edge(b);
  };
  auto seen = [&](int b) { return mand(first(hi - b * kRun), mnot(first(lo - b * kRun))); };
  if (SCALED)
    for (int b = b0; b < b1; b++) fstore(s + b * kRun, mul(fload(s + b * kRun), fload(scales[b])));
  if (cap > 0)
    for (int b = b0; b < b1; b++) fstore(s + b * kRun, mul(fset(cap), vtanh(mul(fload(s + b * kRun), fset(1.f / cap)))));
  F m = fset(-1e30f);
  each([&](int b) { m = vmax(pick(seen(b), fload(s + b * kRun), fset(-1e30f)), m); }, [&](int b) { m = vmax(fload(s + b * kRun), m); });
  const float top = hmax(m);
  const F t = fset(top);
  F sum = fzero();
  auto weight = [&](int b) { return exp2_neg(vmin(sub(fload(s + b * kRun), t), fzero())); };
  auto keep = [&](int b, F p, F stored) {
    fstore(s + b * kRun, stored);
    sum = add(sum, p);
  };
  auto scaled = [&](int b, F p) { return SCALED ? mul(p, fload(scales[b] + kRun)) : p; };
  each(
      [&](int b) {
        const F p = weight(b);
        keep(b, pick(seen(b), p, fzero()), pick(seen(b), scaled(b, p), fzero()));
      },
      [&](int b) {
        const F p = exp2_neg(sub(fload(s + b * kRun), t));
        keep(b, p, scaled(b, p));
      });
  *max_out = top;
  *sum_out = hsum(sum);
}

// Weighted V of R rows, 16 * W columns, positions [lo, hi) of the chunk.
template <class E, int R, int W>
static ALWAYS void weigh(const float* score, const uint8_t* const* vp, int dim, int col, int lo, int hi, float* out, size_t ld) {
  F o[R][W];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int i = 0; i < W; i++) o[r][i] = fzero();
  for (int j = lo; j < hi;) {
    const E* v = reinterpret_cast<const E*>(vp[j / kRun]) + (j % kRun) * dim + col;
    const int end = imin(hi, (j / kRun + 1) * kRun);
    for (; j < end; j++, v += dim) {
      F x[W];
      UNROLL for (int i = 0; i < W; i++) x[i] = wide(v + 16 * i);
      UNROLL for (int r = 0; r < R; r++) {
        const F p = fset(score[r * kChunk + j]);
        UNROLL for (int i = 0; i < W; i++) o[r][i] = fma(p, x[i], o[r][i]);
      }
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int i = 0; i < W; i++) fstore(out + r * ld + col + 16 * i, o[r][i]);
}

template <int R, int W>
static NOINLINE void wide_weigh(const float* score, const float* v, int dim, int n, float* out, size_t ld) {
  F o[R][W];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int i = 0; i < W; i++) o[r][i] = fzero();
  for (const float* end = score + n; score < end; score++, v += dim) {
    F x[W];
    UNROLL for (int i = 0; i < W; i++) x[i] = fload(v + 16 * i);
    UNROLL for (int r = 0; r < R; r++) {
      const F p = fset(score[r * kChunk]);
      UNROLL for (int i = 0; i < W; i++) o[r][i] = fma(p, x[i], o[r][i]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int i = 0; i < W; i++) fstore(out + r * ld + 16 * i, o[r][i]);
}

// The end of the positions that a row of request i at `pos` attends to: after itself, or later inside images with bidirectional attention.
static ALWAYS int seen_end(const AttentionArgs& a, int row, int pos, int kv) {
  return a.meta.row_ends ? clamp(a.meta.row_ends[row], pos + 1, kv) : pos + 1;
}

// One chunk for R adjacent rows of a tile. `ends` of its tokens. part receives R partial results; seen says which rows see anything. E:
// what is read, float where blocks were widened.
template <int R, class E, bool SCALED>
static void chunk_rows(const AttentionArgs& a, const Scratch& s, int r0, int grp, int pos0, const int* ends, int base, unsigned* seen) {
  constexpr bool WIDE = sizeof(E) == sizeof(float);
  const int dim = a.kv.dim;
  const size_t ld = part_size(dim);
  int lo[R], hi[R], low = kChunk, high = 0;
  *seen = 0;
  UNROLL for (int r = 0; r < R; r++) {
    const int pos = pos0 + (r0 + r) / grp;
    hi[r] = clamp(ends[(r0 + r) / grp] - base, 0, kChunk);
    lo[r] = a.window > 0 ? clamp(pos - a.window + 1 - base, 0, kChunk) : 0;
    if (lo[r] >= hi[r]) continue;
    *seen |= 1u << r;
    low = imin(low, lo[r]);
    high = hi[r] > high ? hi[r] : high;
  }
  if (!*seen) return;
  const int b0 = low / kRun, b1 = (high + kRun - 1) / kRun;
  const float* q = s.q + size_t(r0) * dim;
  for (int b = b0, n; b < b1; b += n) {
    n = imin(kAttP - b % kAttP, b1 - b);
    float* to = s.score + b * kRun;
    if constexpr (WIDE) with_rows<kAttP>(n, [&](auto p) { wide_scores<R, decltype(p)::value>(q, wide_k(s, b, dim), dim, to); });
    else if (n == kAttP) scores<E, R, kAttP>(q, dim, s.at.k + b, s.at.v + b, to);
    else scores<E, R, 1>(q, dim, s.at.k + b, s.at.v + b, to), n = 1;
  }
  for (int r = 0; r < R; r++)
    soften<SCALED>(s.score + r * kChunk, s.at.scales, b0, b1, lo[r], hi[r], a.soft_cap * kLog2E, s.part + r * ld + dim, s.part + r * ld + dim + 1);
  auto columns = [&](auto w, int col) {
    constexpr int W = decltype(w)::value;
    if constexpr (WIDE) wide_weigh<R, W>(s.score + low, s.v32 + size_t(low) * dim + col, dim, high - low, s.part + col, ld);
    else weigh<E, R, W>(s.score, s.at.v, dim, col, low, high, s.part, ld);
  };
  int col = 0;
  for (; col + 16 * kAttP <= dim; col += 16 * kAttP) columns(Const<kAttP>{}, col);
  for (; col < dim; col += 16) columns(Const<1>{}, col);
}

// A chunk for all rows of a tile; calls done(first row, rows, seen) for groups of rows whose partial results are in s.part.
template <class Fn>
static ALWAYS void chunk_tile(const AttentionArgs& a, Scratch& s, const int* table, int rows, int grp, int pos0, const int* ends, int last_end,
                              int chunk, int h, Fn done) {
  const int base = chunk * kChunk, end = imin(base + kChunk, last_end);
  const int begin = a.window > 0 && pos0 - a.window + 1 > base ? pos0 - a.window + 1 : base;
  if (begin >= end) return;
  find_blocks(a.kv, table, base, begin, end, h, s.at);
  const bool widened = rows >= 3 * kAttR;
  if (widened) widen(a.kv, s, (begin - base) / kRun, (end - base + kRun - 1) / kRun);
  const int parts = (rows + kAttR - 1) / kAttR;
  for (int i = 0; i < parts; i++) {
    const int r0 = rows * i / parts, n = rows * (i + 1) / parts - r0;
    unsigned seen = 0;
    with_rows<kAttR>(n, [&](auto rr) {
      constexpr int R = decltype(rr)::value;
      auto rows_of = [&](auto fn) { fn(a, s, r0, grp, pos0, ends, base, &seen); };
      if (a.kv.form == kKVHalf) rows_of(widened ? chunk_rows<R, float, false> : chunk_rows<R, Half, false>);
      else if (widened) rows_of(chunk_rows<R, float, true>);
      else rows_of(a.kv.form == kKVInt8 ? chunk_rows<R, Int8, true> : chunk_rows<R, E4M3, true>);
    });
    if (seen) done(r0, n, seen);
  }
}

// Where groups of 32 never span heads, a finished head goes to its readers at once.
static ALWAYS bool direct(const AttentionArgs& a) { return a.kv.head % 32 == 0; }
static ALWAYS void finish_head(const AttentionArgs& a, float* total, int row, int head) {
  const int dim = a.kv.dim;
  const float* sink = a.sinks ? a.sinks + head : nullptr;
  if (!direct(a)) return normalize(total, sink, a.rows_out + (size_t(row) * a.num_heads + head) * a.kv.head, dim, a.kv.head);
  normalize(total, sink, total, dim, dim);
  for (int d = 0; d < dim; d += 32) write32(a.out, row, (head * dim + d) / 32, fload(total + d), fload(total + d + 16), 32);
}

static void attention_unit(const AttentionArgs& a, const Cut& cut, int i, int u, char* scratch) {
  const int dim = a.kv.dim, hkv = a.kv.heads, grp = a.num_heads / hkv;
  const int ql = a.meta.q_len[i], kv = a.meta.seq_lens[i], q0 = a.meta.q_start[i];
  const int h = u % hkv, v = u / hkv, chunk = v % cut.chunks, tile = cut.tiles - 1 - v / cut.chunks;   // longest first
  const int t0 = tile * cut.tile_tokens, nt = imin(cut.tile_tokens, ql - t0), rows = nt * grp, pos0 = kv - ql + t0;
  const int* table = a.meta.req_to_token + size_t(clamp(a.meta.req_pool_idx[i], 0, a.meta.table_rows - 1)) * a.meta.context_len;
  Scratch s;
  carve(s, scratch, dim, cut.tile_tokens * grp);
  for (int t = 0; t < nt; t++) {
    const float* from = a.qkv + (q0 + t0 + t) * a.ld + size_t(h) * grp * a.kv.head;
    float* q = s.q + size_t(t) * grp * dim;
    for (int g = 0; g < grp; g++, from += a.kv.head, q += dim)
      for (int d = 0; d < dim; d += 16) fstore(q + d, mul(load_up_to(from + d, a.kv.head - d), fset(kLog2E)));
  }
  const size_t ld = part_size(dim);
  int ends[64], last_end = 0;          // a tile has no more tokens
  for (int t = 0; t < nt; t++) {
    ends[t] = seen_end(a, q0 + t0 + t, pos0 + t, kv);
    last_end = ends[t] > last_end ? ends[t] : last_end;
  }
  if (cut.entry >= 0) {
    chunk_tile(a, s, table, rows, grp, pos0, ends, last_end, cut.first_chunk + chunk, h, [&](int r0, int n, unsigned seen) {
      for (int i = 0; i < n; i++) {
        const size_t at = size_t(cut.entry) + size_t(t0 + (r0 + i) / grp) * cut.chunks + chunk;
        if (seen >> i & 1) __builtin_memcpy(a.part + (at * a.num_heads + h * grp + (r0 + i) % grp) * ld, s.part + i * ld, ld * 4);
      }
    });
    return;
  }
  for (int r = 0; r < rows; r++) s.total[r * ld + dim] = s.total[r * ld + dim + 1] = 0;      // no sum yet
  const int first_chunk = a.window > 0 && pos0 - a.window + 1 > 0 ? (pos0 - a.window + 1) / kChunk : 0;
  for (int c = first_chunk; c <= (last_end - 1) / kChunk; c++)
    chunk_tile(a, s, table, rows, grp, pos0, ends, last_end, c, h, [&](int r0, int n, unsigned seen) {
      merge_rows(s.total + r0 * ld, s.part, n, seen, dim);
    });
  for (int t = 0, r = 0; t < nt; t++)
    for (int g = 0; g < grp; g++, r++) finish_head(a, s.total + r * ld, q0 + t0 + t, h * grp + g);
}

// Whether request i of the step is valid: the arrays come from outside, and no value in them may lead out of bounds. All requests
// together have no more rows than there are (`left`), so that counts of work stay small.
static ALWAYS bool valid(const AttentionArgs& a, int i, int* left) {
  const int ql = a.meta.q_len[i], kv = a.meta.seq_lens[i], q0 = a.meta.q_start[i];
  if (ql <= 0 || ql > *left || kv < ql || kv > a.meta.context_len || q0 < 0 || q0 > a.max_rows - ql) return false;
  *left -= ql;
  return true;
}
static void attention(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const AttentionArgs*>(args);
  const int n = clamp(*a.meta.num_reqs, 0, a.meta.max_reqs);
  int base = 0, used = 0, left = a.max_rows, u = c.take();
  for (int i = 0; i < n; i++) {
    if (!valid(a, i, &left)) continue;
    const Cut k = cut(a, i, c.size, &used);
    for (; u < base + k.units; u = c.take()) attention_unit(a, k, i, u - base, c.scratch);
    base += k.units;
  }
}

static void finish_row(const AttentionArgs& a, const Cut& k, int pos, int kv, int t, int row, int h0, int h1, float* buf) {
  const int dim = a.kv.dim, head = a.kv.head;
  const size_t ld = part_size(dim);
  float* o = a.rows_out + size_t(row) * a.num_heads * head;
  if (k.entry >= 0) {
    const int low = a.window > 0 && pos - a.window + 1 > 0 ? (pos - a.window + 1) / kChunk : 0;
    for (int h = h0; h < h1; h++) {
      const float* p = a.part + ((size_t(k.entry) + size_t(t) * k.chunks) * a.num_heads + h) * ld;
      const size_t step = ld * a.num_heads;
      const int c0 = low - k.first_chunk, c1 = (seen_end(a, row, pos, kv) - 1) / kChunk - k.first_chunk;
      __builtin_memcpy(buf, p + c0 * step, ld * 4);
      for (int c = c0 + 1; c <= c1; c++) merge(buf, p + c * step, dim);
      normalize(buf, a.sinks ? a.sinks + h : nullptr, o + size_t(h) * head, dim, head);
    }
  }
  for (int col = h0 * head; col < h1 * head; col += 32) {
    const int n = h1 * head - col;
    write32(a.out, row, col / 32, load_up_to(o + col, n), n > 16 ? load_up_to(o + col + 16, n - 16) : fzero(), n);
  }
}
// Merges what was split, and writes every row as its readers want it.
static void attention_finish(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const AttentionArgs*>(args);
  const int n = clamp(*a.meta.num_reqs, 0, a.meta.max_reqs);
  int few = 1;                         // heads that end where a group of 32 does
  while (few * a.kv.head % 32) few *= 2;
  const int parts = n <= 4 * c.n ? (a.num_heads + few - 1) / few : 1, heads = parts == 1 ? a.num_heads : few;
  int base = 0, used = 0, left = a.max_rows, u = c.take();
  for (int i = 0; i < n; i++) {
    if (!valid(a, i, &left)) continue;
    const Cut k = cut(a, i, c.size, &used);
    const int ql = a.meta.q_len[i], pos0 = a.meta.seq_lens[i] - ql;
    if (k.entry < 0 && direct(a)) continue;
    const int by = ql > 4 * c.n ? 1 : parts, hs = by == 1 ? a.num_heads : heads;       // a long extend: whole rows
    for (; u < base + ql * by; u = c.take()) {
      const int t = (u - base) / by, h0 = (u - base) % by * hs;
      finish_row(a, k, pos0 + t, a.meta.seq_lens[i], t, a.meta.q_start[i] + t, h0, imin(h0 + hs, a.num_heads), reinterpret_cast<float*>(c.scratch));
    }
    base += ql * by;
  }
}

}  // namespace ISA
