// Ops of vision-language models: encoders of patches, and the seams where their rows enter the decoder. Rows are independent of
// each other, except in attention, where a row sees its own segment and nothing else.
#pragma once

namespace ISA {

// ---- seams ----------------------------------------------------------------------------------------------------------------
static void overlay(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const RowsArgs*>(args);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n) {
    const int from = a.index[r];
    if (from < 0 || from >= a.source_rows) continue;
    const float* s = a.source + size_t(from) * a.ld_source;
    float* x = a.out + size_t(r) * a.ld_out;
    for (int k = 0; k < a.width; k += 16) {
      const F v = fload_n(s + k, a.width - k);
      fstore_n(x + k, a.add ? add(fload_n(x + k, a.width - k), v) : v, a.width - k);
    }
  }
}
static void gather_rows(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const RowsArgs*>(args);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n)
    __builtin_memcpy(a.out + size_t(r) * a.ld_out, a.source + size_t(clamp(a.index[r], 0, a.source_rows - 1)) * a.ld_source, size_t(a.width) * 4);
}
static void blend_rows(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const BlendArgs*>(args);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n)
    for (int k = 0; k < a.width; k += 16) {
      F sum = fzero();
      for (int j = 0; j < a.count; j++) {
        const float* s = a.source + size_t(clamp(a.index[size_t(r) * a.count + j], 0, a.source_rows - 1)) * a.ld_source + k;
        sum = fma(fset(a.weight[size_t(r) * a.ld_weight + j]), fload_n(s, a.width - k), sum);
      }
      fstore_n(a.out + size_t(r) * a.ld_out + k, sum, a.width - k);
    }
}
static void select_rope(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const SelectRopeArgs*>(args);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n) {
    const float *cos[3], *sin[3];
    for (int i = 0; i < 3; i++) {
      const size_t at = size_t(clamp(a.positions[size_t(i) * a.ld_positions + r], 0, a.num_positions - 1)) * a.width;
      cos[i] = a.cos + at, sin[i] = a.sin + at;
    }
    float *co = a.out_cos + size_t(r) * a.width, *so = a.out_sin + size_t(r) * a.width;
    for (int k = 0; k < a.width; k++) {
      const int axis = clamp(a.axes[k], 0, 2);
      co[k] = cos[axis][k], so[k] = sin[axis][k];
    }
  }
}

// ---- between the linear layers ----------------------------------------------------------------------------------------------
static void layer_norm_row(const LayerNormArgs& a, int i) {
  const int w = a.width;
  float* x = a.x + size_t(i) * a.ld_x;
  F sum = fzero();
  for (int k = 0; k < w; k += 16) {
    F t = fload_n(x + k, w - k);
    if (a.delta) {
      t = add(t, fload_n(a.delta + size_t(i) * a.ld_delta + k, w - k));
      fstore_n(x + k, t, w - k);
    }
    sum = add(sum, t);
  }
  const F mean = fset(hsum(sum) / float(w));
  F ss = fzero();
  for (int k = 0; k < w; k += 16) {
    const F t = pick(first(w - k), sub(fload_n(x + k, w - k), mean), fzero());
    ss = fma(t, t, ss);
  }
  const F inv = fset(1.f / __builtin_sqrtf(hsum(ss) / float(w) + a.eps));
  auto at = [&](int k) {
    const F t = mul(sub(fload_n(x + k, w - k), mean), inv);
    return fma(t, fload_n(a.weight + k, w - k), fload_n(a.bias + k, w - k));
  };
  if (a.out) {
    for (int k = 0; k < w; k += 16) fstore_n(a.out + size_t(i) * a.ld_out + k, at(k), w - k);
  } else {
    for (int k = 0; k < w; k += 32) write32(a.act, i, k / 32, at(k), w - k > 16 ? at(k + 16) : fzero(), w - k);
  }
}
static void layer_norm(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const LayerNormArgs*>(args);
  for (int i = c.tid, n = count(a.rows, a.max_rows); i < n; i += c.n) layer_norm_row(a, i);
}

// x / (1 + exp(-1.702 x))
static ALWAYS F quick_gelu(F x) { return div(x, add(fset(1.f), vexp(mul(x, fset(-1.702f))))); }

template <class Fn> static ALWAYS void activate_rows(const GateArgs& a, const Ctx& c, Fn f) {
  each_group(a.out, count(a.rows, a.max_rows), c, [&](int r, int g) {
    const int k = 32 * g, n = a.out.width - k;
    const float* x = a.gate + size_t(r) * a.ld_gate + k;
    write32(a.out, r, g, f(fload_n(x, n)), n > 16 ? f(fload_n(x + 16, n - 16)) : fzero(), n);
  });
}
static void activate(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const GateArgs*>(args);
  if (a.fn == kSilu) activate_rows(a, c, [](F x) { return silu(x); });
  else if (a.fn == kGeluTanh) activate_rows(a, c, [](F x) { return gelu_tanh(x); });
  else if (a.fn == kGelu) activate_rows(a, c, [](F x) { return gelu_erf(x); });
  else if (a.fn == kQuickGelu) activate_rows(a, c, [](F x) { return quick_gelu(x); });
  else if (a.fn == kRelu) activate_rows(a, c, [](F x) { return vmax(x, fzero()); });
  else activate_rows(a, c, [](F x) { const F y = vmax(x, fzero()); return mul(y, y); });
}

static void rotate_rows(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const RotateArgs*>(args);
  for (int r = c.tid, n = count(a.rows, a.max_rows); r < n; r += c.n)
    for (int h = 0; h < a.num_heads; h++)
      rotate(a.x + size_t(r) * a.ld + size_t(h) * a.head_dim, a.cos + size_t(r) * a.rot, a.sin + size_t(r) * a.rot, a.rot);
}

// ---- attention inside segments ------------------------------------------------------------------------------------------------
// A unit is a few rows of one segment under one head; keys pass in chunks of kChunk counted from the segment's start, with the
// arithmetic of attention.h. Heads are padded with zeros to a multiple of sixteen columns.
constexpr int kSegmentRows = 48;

static ALWAYS int padded(int dim) { return (dim + 15) / 16 * 16; }

// Keys [at, at + n) of a segment: K by blocks of sixteen positions, transposed; V row by row.
static void load_keys(const SegmentArgs& a, int low, int at, int n, int h, Scratch& s) {
  const int dim = a.head_dim, wide_dim = padded(dim), width = a.num_heads * dim;
  for (int b = 0; b * kRun < n; b++) {
    constexpr int step = kAttP * kRun;
    float *k = wide_k(s, b, wide_dim), *v = s.v32 + size_t(b) * kRun * wide_dim;
    for (int j = 0; j < kRun; j++) {
      const bool there = b * kRun + j < n;
      const float* row = a.qkv + size_t(low + at + (there ? b * kRun + j : 0)) * a.ld + size_t(h) * dim;
      for (int d = 0; d < dim; d++) k[d * step + j] = there ? row[width + d] : 0.f;
      for (int d = dim; d < wide_dim; d++) k[d * step + j] = 0.f;
      for (int d = 0; d < wide_dim; d++) v[size_t(j) * wide_dim + d] = there && d < dim ? row[2 * width + d] : 0.f;
    }
  }
}

// Adds to the scores of the row at `pos` and the keys [at, at + n) what the head's biases say, by distance.
static ALWAYS void add_bias(const float* bias, int reach, int pos, int at, int n, float* score) {
  const int left = clamp(pos - reach - at, 0, n), right = clamp(pos + reach + 1 - at, left, n);
  for (int j = 0; j < left; j++) score[j] += bias[0] * kLog2E;
  const float* b = bias + reach + at - pos;
  for (int j = left; j < right; j++) score[j] += b[j] * kLog2E;
  for (int j = right; j < n; j++) score[j] += bias[2 * reach] * kLog2E;
}

// Rows r0 .. r0 + R - 1 of a tile and the keys [at, at + n) of their segment; `pos`: of row r0 in the segment. Returns which rows
// see any of them.
template <int R> static unsigned segment_rows(const SegmentArgs& a, const Scratch& s, int r0, int pos, int at, int n, int h, int dim) {
  const int blocks = (n + kRun - 1) / kRun;
  const size_t ld = part_size(dim);
  const float* q = s.q + size_t(r0) * dim;
  for (int b = 0; b < blocks; b += kAttP)
    with_rows<kAttP>(imin(kAttP, blocks - b), [&](auto p) { wide_scores<R, decltype(p)::value>(q, wide_k(s, b, dim), dim, s.score + b * kRun); });
  unsigned seen = 0;
  for (int r = 0; r < R; r++) {
    const int lo = a.window ? clamp(pos + r - a.window - at, 0, n) : 0, hi = a.window ? clamp(pos + r + a.window + 1 - at, lo, n) : n;
    if (a.bias) add_bias(a.bias + size_t(h) * a.ld_bias, a.reach, pos + r, at, n, s.score + r * kChunk);
    soften<false>(s.score + r * kChunk, nullptr, 0, blocks, lo, hi, 0.f, s.part + r * ld + dim, s.part + r * ld + dim + 1);
    seen |= unsigned(lo < hi) << r;
  }
  int col = 0;
  for (; col + 16 * kAttP <= dim; col += 16 * kAttP) wide_weigh<R, kAttP>(s.score, s.v32 + col, dim, n, s.part + col, ld);
  for (; col < dim; col += 16) wide_weigh<R, 1>(s.score, s.v32 + col, dim, n, s.part + col, ld);
  return seen;
}

static void segment_unit(const SegmentArgs& a, int low, int high, int q0, int q1, int h, char* scratch) {
  const int dim = padded(a.head_dim), rows = q1 - q0;
  Scratch s;
  carve(s, scratch, dim, kSegmentRows);
  for (int r = 0; r < rows; r++) {
    const float* from = a.qkv + size_t(q0 + r) * a.ld + size_t(h) * a.head_dim;
    for (int d = 0; d < dim; d++) s.q[size_t(r) * dim + d] = d < a.head_dim ? from[d] * (a.scale * kLog2E) : 0.f;
  }
  const size_t ld = part_size(dim);
  for (int r = 0; r < rows; r++) s.total[size_t(r) * ld + dim + 1] = 0.f;      // a row without a sum has nothing yet
  const int first = q0 - low, begin = a.window && first > a.window ? first - a.window : 0;
  const int end = a.window ? imin(first + rows - 1 + imin(a.window, high - low) + 1, high - low) : high - low;
  for (int at = begin / kChunk * kChunk; at < end; at += kChunk) {
    const int n = imin(kChunk, high - low - at), parts = (rows + kAttR - 1) / kAttR;
    load_keys(a, low, at, n, h, s);
    for (int i = 0; i < parts; i++) {
      const int r0 = rows * i / parts, nr = rows * (i + 1) / parts - r0;
      unsigned seen = 0;
      with_rows<kAttR>(nr, [&](auto rr) { seen = segment_rows<decltype(rr)::value>(a, s, r0, first + r0, at, n, h, dim); });
      for (int r = 0; r < nr; r++) {
        float* t = s.total + size_t(r0 + r) * ld;
        if (!(seen >> r & 1)) continue;
        if (t[dim + 1] == 0) __builtin_memcpy(t, s.part + r * ld, ld * 4);
        else merge(t, s.part + r * ld, dim);
      }
    }
  }
  for (int r = 0; r < rows; r++) {
    float* t = s.total + size_t(r) * ld;
    normalize(t, nullptr, t, dim, dim);
    __builtin_memcpy(a.out + size_t(q0 + r) * a.ld_out + size_t(h) * a.head_dim, t, size_t(a.head_dim) * 4);
  }
}

static void segment_attention(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const SegmentArgs*>(args);
  int base = 0, last = 0, u = c.take();
  for (int i = 0; i < a.num_segments; i++) {
    const int low = a.starts[i], high = a.starts[i + 1];
    if (low < last || high > a.max_rows || low >= high) continue;          // in order and apart, so that counts of work stay small
    last = high;
    const int q0 = low > a.begin ? low : a.begin, q1 = imin(high, a.end);
    if (q0 >= q1) continue;
    const int tiles = (q1 - q0 + kSegmentRows - 1) / kSegmentRows, units = tiles * a.num_heads;
    for (; u < base + units; u = c.take()) {
      const int tile = (u - base) / a.num_heads, first_row = q0 + tile * kSegmentRows;
      segment_unit(a, low, high, first_row, imin(first_row + kSegmentRows, q1), (u - base) % a.num_heads, c.scratch);
    }
    base += units;
  }
}

}  // namespace ISA
