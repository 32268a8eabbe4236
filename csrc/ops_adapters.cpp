// The op of adapters (low-rank additions).
#include "call.h"
#include "ops.h"

// Chunks of k: enough of them for all threads, and few, since they are added up again.
static int chunk_len(int k) { return smaller(k, ((k + 15) / 16 + 63) / 64 * 64); }

static void low_rank(Runtime& rt, Obj a_values, Obj b_values, Obj scales, Obj ranks, Obj widths, int max_rank, Obj x, Obj out, Obj num_tiles,
                     Obj slots, Obj starts, Obj order) {
  Call c("low_rank");
  LowRankArgs a{};
  AdapterView& bank = a.bank;
  const auto columns = c.vec<int>(widths, "widths", 1);
  const auto s = c.mat<float>(scales, "scales", columns.n);
  const auto r = c.mat<int>(ranks, "ranks", columns.n);
  c.check(columns.n <= kMaxParts, "widths", "must name at most 4 parts");
  c.check(s.cols == columns.n && r.cols == columns.n && r.rows == s.rows && s.ld == size_t(s.cols) && r.ld == size_t(r.cols), "scales",
          "and ranks must be contiguous, with a row for each slot and a column for each part");
  c.check(max_rank > 0 && max_rank <= 4096, "max_rank", "must lie between 1 and 4096");
  const Activation& act = c.handle<Activation>(x, "x");
  a.x = act.view;
  bank.slots = s.rows, bank.parts = columns.n, bank.groups = (max_rank + 15) / 16, bank.k = (act.view.width + 31) / 32 * 32;
  bank.scales = s.p, bank.ranks = r.p;
  int64_t total = 0;
  for (int p = 0; p < columns.n; p++) {
    c.check(columns.p[p] > 0 && columns.p[p] <= 1 << 24, "widths", "must be positive and not huge");
    a.first[p] = int(total), a.widths[p] = columns.p[p];
    a.first_panel[p + 1] = a.first_panel[p] + (columns.p[p] + 15) / 16;
    total += columns.p[p];
  }
  bank.a_slot = size_t(bank.parts) * bank.groups * bank.k * 16;
  bank.b_slot = size_t(a.first_panel[bank.parts]) * bank.groups * 256;
  bank.a = c.vec<uint16_t>(a_values, "a", bank.a_slot * size_t(bank.slots)).p;
  bank.b = c.vec<uint16_t>(b_values, "b", bank.b_slot * size_t(bank.slots)).p;
  const auto o = c.out_mat<float>(out, "out", int(total));
  a.out = o.p, a.ld_out = o.ld;
  const auto t = c.vec<int>(slots, "slots", 1);
  const auto begins = c.vec<int>(starts, "starts", 1);
  const auto rows = c.vec<int>(order, "order", 0);
  a.num_tiles = c.vec<int>(num_tiles, "num_tiles", 1).p;
  a.slots = t.p, a.starts = begins.p, a.order = rows.p;
  a.max_tiles = smaller(t.n, begins.n - 1);
  a.max_rows = smaller(smaller(o.rows, act.max_rows), rows.n);
  a.chunk_len = chunk_len(bank.k);
  a.chunks = (bank.k + a.chunk_len - 1) / a.chunk_len;
  c.check(size_t(a.chunk_len) * 16 * 4 <= kScratchBytes, "x", "is too wide");
  const size_t lanes = size_t(bank.parts) * bank.groups * 16;
  a.h = static_cast<float*>(rt.buffer("low rank", size_t(a.max_rows) * a.chunks * lanes * 4));
  const Op ops[] = {make_op("low_rank_down", rt.kernels().low_rank_down, a), make_op("low_rank_up", rt.kernels().low_rank_up, a)};
  rt.run(ops, 2, c.keep);
}

void def_adapter_ops(nb::class_<Runtime>& runtime) { runtime.def("low_rank", &low_rank); }
