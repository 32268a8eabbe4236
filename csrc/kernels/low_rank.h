// Low-rank additions: out[row] += scale * B (A x[row]), the matrices by the adapter of the row.
//
// Two ops. `low_rank_down` makes parts of A x, one for each chunk of k; `low_rank_up` adds the parts up, chunk by chunk, and
// multiplies by B. Rows come in tiles of one adapter. A row has accumulators of its own, so its sums do not depend on its tile.
#pragma once

namespace ISA {

constexpr int kTile = 16;              // rows of a tile at most (ADAPTER_TILE of kernels/low_rank.py)
constexpr int kDownRows = kFR >= 12 ? 6 : kFR >= 4 ? 3 : 1;       // rows whose accumulators, two each, fit in registers
constexpr int kAhead = 2048;           // values between what is read and what is fetched: streams are too short for the processor to notice
constexpr int kUpRows = kFR >= 12 ? 8 : kFR >= 4 ? 4 : 2;

// The rows of a tile, those that exist.
struct TileRows {
  int slot, n, rows[kTile];
  ALWAYS TileRows(const LowRankArgs& a, int t) : slot(a.slots[t]), n(0) {
    const int begin = clamp(a.starts[t], 0, a.max_rows), end = clamp(a.starts[t + 1], begin, imin(a.max_rows, begin + kTile));
    if (slot < 0 || slot >= a.bank.slots) return;
    for (int i = begin; i < end; i++)
      if (a.order[i] >= 0 && a.order[i] < a.max_rows) rows[n++] = a.order[i];
  }
};
static ALWAYS int rank_groups(const AdapterView& bank, int slot, int part) {
  return clamp((bank.ranks[slot * bank.parts + part] + 15) / 16, 0, bank.groups);
}

// Values k0 .. k0 + n - 1 of a row as floats, n a multiple of 32.
static void read_row(const ActView& x, int row, int k0, int n, float* out) {
  if (x.f) {
    for (int k = 0; k < n; k += 16) fstore(out + k, fload(x.f + size_t(row) * x.stride + k0 + k));
    return;
  }
  for (int k = 0; k < n; k += 32) {
    const Group* g = group_at(x, row, (k0 + k) / 32);
    for (int i = 0; i < 32; i++) out[k + i] = g->d * float(g->q[i]);
  }
}

// Sixteen ranks of R rows over n values of k: even and odd ones apart, then together.
template <int R> static NOINLINE void down_rows(const uint16_t* a, const float* x, size_t ld, int n, float* const* h) {
  F even[R], odd[R];
  UNROLL for (int r = 0; r < R; r++) even[r] = odd[r] = fzero();
  for (int k = 0; k < n; k += 2, a += 32) {
    prefetch(a + kAhead);
    const F lo = load_f16(a), hi = load_f16(a + 16);
    UNROLL for (int r = 0; r < R; r++) even[r] = fma(lo, fset(x[r * ld + k]), even[r]);
    UNROLL for (int r = 0; r < R; r++) odd[r] = fma(hi, fset(x[r * ld + k + 1]), odd[r]);
  }
  UNROLL for (int r = 0; r < R; r++) fstore(h[r], add(even[r], odd[r]));
}

// One chunk of k of one matrix of sixteen ranks.
static void down_unit(const LowRankArgs& a, const TileRows& tile, int matrix, int chunk, float* x) {
  const AdapterView& b = a.bank;
  if (!tile.n || matrix % b.groups >= rank_groups(b, tile.slot, matrix / b.groups)) return;
  const int k0 = chunk * a.chunk_len, n = imin(a.chunk_len, b.k - k0);
  const size_t lanes = size_t(b.parts) * b.groups * 16;
  const uint16_t* w = b.a + tile.slot * b.a_slot + (size_t(matrix) * b.k + k0) * 16;
  for (int r = 0, m; r < tile.n; r += m) {
    m = imin(kDownRows, tile.n - r);
    float* h[kDownRows];
    for (int i = 0; i < m; i++) {
      read_row(a.x, tile.rows[r + i], k0, n, x + size_t(i) * a.chunk_len);
      h[i] = a.h + (size_t(tile.rows[r + i]) * a.chunks + chunk) * lanes + size_t(matrix) * 16;
    }
    with_rows<kDownRows>(m, [&](auto rows) { down_rows<decltype(rows)::value>(w, x, a.chunk_len, n, h); });
  }
}
// Units go through a bank in the order in which it lies in memory.
static void low_rank_down(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const LowRankArgs*>(args);
  const int tiles = count(a.num_tiles, a.max_tiles), units = a.bank.parts * a.bank.groups * a.chunks;
  if (!tiles) return;
  for (Runs run(tiles * units, 4, c); run.next();)
    for (int u = run.begin; u < run.end;) {
      const TileRows tile(a, u / units);
      for (const int first = u / units * units, last = imin(run.end, first + units); u < last; u++)
        down_unit(a, tile, (u - first) / a.chunks, (u - first) % a.chunks, reinterpret_cast<float*>(c.scratch));
    }
}

// One panel of R rows: ranks ascending. h: [R] rows of `ld` floats.
template <int R>
static NOINLINE void up_rows(const uint16_t* b, size_t group, int groups, const float* h, size_t ld, float* const* out, int n) {
  F acc[R];
  UNROLL for (int r = 0; r < R; r++) acc[r] = fzero();
  for (int g = 0; g < groups; g++) {
    const uint16_t* w = b + g * group;
    UNROLL for (int j = 0; j < 16; j++) {
      if (j % 2 == 0) prefetch(w + 16 * j + kAhead);
      const F v = load_f16(w + 16 * j);
      UNROLL for (int r = 0; r < R; r++) acc[r] = fma(v, fset(h[r * ld + 16 * g + j]), acc[r]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) {
    if (n >= 16) fstore(out[r], add(fload(out[r]), acc[r]));
    else fstore_n(out[r], add(fload_n(out[r], n), acc[r]), n);
  }
}

// The parts of A x of a tile's rows, added up and scaled.
static void add_chunks(const LowRankArgs& a, const TileRows& tile, int part, int groups, float* h) {
  const AdapterView& b = a.bank;
  const size_t lanes = size_t(b.parts) * b.groups * 16;
  const F scale = fset(b.scales[tile.slot * b.parts + part]);
  for (int r = 0; r < tile.n; r++) {
    const float* from = a.h + size_t(tile.rows[r]) * a.chunks * lanes + size_t(part) * b.groups * 16;
    for (int g = 0; g < groups; g++) {
      F sum = fload(from + 16 * g);
      for (int c = 1; c < a.chunks; c++) sum = add(sum, fload(from + c * lanes + 16 * g));
      fstore(h + size_t(r) * groups * 16 + 16 * g, mul(sum, scale));
    }
  }
}

// Panels begin .. end - 1 of one part.
static void up_unit(const LowRankArgs& a, const TileRows& tile, int part, int begin, int end, float* h) {
  const AdapterView& b = a.bank;
  if (!tile.n) return;  // and its slot may not exist
  const int groups = rank_groups(b, tile.slot, part), panels = (a.widths[part] + 15) / 16;
  if (!groups) return;
  add_chunks(a, tile, part, groups, h);
  const size_t ld = size_t(groups) * 16, group = size_t(panels) * 256;
  const uint16_t* base = b.b + tile.slot * b.b_slot + size_t(a.first_panel[part]) * b.groups * 256;
  for (int q = begin; q < end; q++) {
    const int column = 16 * q, n = imin(16, a.widths[part] - column);
    for (int r = 0, m; r < tile.n; r += m) {
      m = imin(kUpRows, tile.n - r);
      float* out[kUpRows];
      for (int i = 0; i < m; i++) out[i] = a.out + size_t(tile.rows[r + i]) * a.ld_out + a.first[part] + column;
      with_rows<kUpRows>(m, [&](auto rows) {
        up_rows<decltype(rows)::value>(base + size_t(q) * 256, group, groups, h + r * ld, ld, out, n);
      });
    }
  }
}
static void low_rank_up(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const LowRankArgs*>(args);
  const int tiles = count(a.num_tiles, a.max_tiles), parts = a.bank.parts, panels = a.first_panel[parts];
  if (!tiles) return;
  for (Runs run(tiles * panels, 8, c); run.next();)
    for (int u = run.begin; u < run.end;) {
      const TileRows tile(a, u / panels);
      const int last = imin(run.end, (u / panels + 1) * panels), first = u / panels * panels;
      for (int p = 0; p < parts; p++) {
        const int begin = clamp(u - first, a.first_panel[p], a.first_panel[p + 1]), end = clamp(last - first, begin, a.first_panel[p + 1]);
        if (begin < end) up_unit(a, tile, p, begin - a.first_panel[p], end - a.first_panel[p], reinterpret_cast<float*>(c.scratch));
      }
      u = last;
    }
}

}  // namespace ISA
