// How a linear layer is cut into units of work, and the fused gate.
#pragma once

namespace ISA {

constexpr int kRowBlock = 192;         // rows that a panel is used for at a time; a multiple of kTileRows
constexpr size_t kPanelBuf = size_t(64) << 10;             // scratch: unpacked panels
constexpr size_t kTailBuf = size_t(kRowBlock) * 64 * 4;    // scratch: columns that do not go straight to the output

// Rows r0 .. r1 times panels nb .. nb + num - 1, all columns written. o is where row r0 and the first column go.
static void panels(const WeightView& w, int nb, int num, const ActView& x, int r0, int r1, uint8_t* buf, float* o, size_t ld, bool resume) {
  for (int b = 0; b < num; b++) {
    if (w.kind <= kInt8) panel_int(w, nb + b, x, r0, r1, buf, o + 16 * b, ld, resume);
    else panel_float(w, nb + b, x, r0, r1, buf, o + 16 * b, ld, resume);
  }
}

static void linear_unit(const LinearArgs& a, int nb, int end, int r0, int r1, char* scratch) {
  auto buf = reinterpret_cast<uint8_t*>(scratch);
  float* tail = reinterpret_cast<float*>(scratch + kPanelBuf);
  const bool ragged = end * 16 > a.w.n;                    // the last panel has columns that do not exist
  const int whole = ragged ? end - 1 : end;
  float* o = a.out + r0 * a.ld_out;
  if (a.bias)
    for (int r = r0; r < r1; r++)
      for (int c = 16 * nb; c < 16 * whole; c += 16) fstore(o + (r - r0) * a.ld_out + c, fload(a.bias + c));
  panels(a.w, nb, whole - nb, a.x, r0, r1, buf, o + 16 * nb, a.ld_out, a.bias != nullptr);
  if (!ragged) return;
  const int c = 16 * whole, n = a.w.n - c;
  if (a.bias)
    for (int r = r0; r < r1; r++) fstore(tail + (r - r0) * 16, fload_n(a.bias + c, n));
  panels(a.w, whole, 1, a.x, r0, r1, buf, tail, 16, a.bias != nullptr);
  for (int r = r0; r < r1; r++) fstore_n(o + (r - r0) * a.ld_out + c, fload(tail + (r - r0) * 16), n);
}

// Hands out the numbers below `total` in runs, long ones first: panels are read fastest one after the other, and with short runs
// at the end all threads finish together.
class Runs {
 public:
  int begin = 0, end = 0;
  ALWAYS Runs(int total, int shortest, const Ctx& c) : total_(total), shortest_(shortest), share_(3 * c.n), c_(c) {}
  ALWAYS bool next() {
    for (const int u = c_.take(); count_ <= u; count_++) {
      if (end >= total_) return false;
      const int n = (total_ - end) / share_;
      begin = end;
      end = imin(total_, end + (n > shortest_ ? n : shortest_));
    }
    return true;
  }

 private:
  const int total_, shortest_, share_;
  int count_ = 0;
  const Ctx& c_;
};
// Rows of equal blocks, at most kRowBlock.
static ALWAYS int block_rows(int m) {
  const int blocks = (m + kRowBlock - 1) / kRowBlock, rows = (m + blocks - 1) / blocks;
  return (rows + kTileRows - 1) / kTileRows * kTileRows;
}

// All columns of rows 0 .. m - 1, and of the rows after them the panels that are listed.
static ALWAYS void linear_rows(const LinearArgs& a, int m, int end_row, const int* listed, int num_listed, const Ctx& c) {
  const int nb = a.w.panels, rows = m > 0 ? block_rows(m) : 1, whole = nb * ((m + rows - 1) / rows);
  for (Runs run(whole + num_listed, m <= 6 ? 3 : 1, c); run.next();)
    for (int p = run.begin, end; p < run.end; p = end) {
      if (p >= whole) {
        const int b = listed[p - whole];
        end = p + 1;
        if (b < 0 || b >= nb) continue;
        for (int r = m; r < end_row; r += kRowBlock) linear_unit(a, b, b + 1, r, imin(r + kRowBlock, end_row), c.scratch);
        continue;
      }
      const int r0 = p / nb * rows, first = p / nb * nb;
      end = imin(imin(run.end, whole), first + nb);
      linear_unit(a, p - first, end - first, r0, imin(r0 + rows, m), c.scratch);
    }
}
static void linear(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const LinearArgs*>(args);
  const int m = count(a.rows, a.max_rows);
  if (m > 0) linear_rows(a, m, m, nullptr, 0, c);
}
static void linear_blocks(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const BlocksArgs*>(args);
  const int m = count(a.linear.rows, a.linear.max_rows);
  if (m <= 0) return;
  const int whole = count(a.whole, m);
  linear_rows(a.linear, whole, m, a.blocks, whole < m ? count(a.num_blocks, a.max_blocks) : 0, c);
}

// Gate and up panels alternate by twos: g0 g1 u0 u1 g2 g3 u2 u3 ... A unit makes 32 hidden values of a block of rows, a whole
// group of the next layer's input, so the float gate and up never go to memory.
// `bias`, or null: of all gates, then of all ups.
template <int FN>
static void gated_unit(const WeightView& w, const ActView& x, const ActView& out, int q, int r0, int r1, const float* bias, char* scratch) {
  float* tmp = reinterpret_cast<float*>(scratch + kPanelBuf);
  const int left = out.width - 32 * q;                     // columns that exist
  if (bias)
    for (float* t = tmp; t < tmp + size_t(r1 - r0) * 64; t += 64)
      for (int i = 0; i < 64; i += 16) fstore(t + i, fload_n(bias + 32 * q + (i < 32 ? i : out.width + i - 32), left - i % 32));
  panels(w, 4 * q, 4, x, r0, r1, reinterpret_cast<uint8_t*>(scratch), tmp, 64, bias != nullptr);
  // Two passes: the work of one row is longer than the processor's window for out-of-order execution.
  float* end = tmp + size_t(r1 - r0) * 64;
  for (float* t = tmp; t < end; t += 64)
    for (int i = 0; i < 32; i += 16) fstore(t + i, gated<FN>(fload(t + i), fload(t + i + 32)));
  for (float* t = tmp; t < end; t += 64) write32(out, r0 + int(t - tmp) / 64, q, fload(t), fload(t + 16), left);
}
template <int FN> static void gated_rows(const GatedLinearArgs& a, const Ctx& c) {
  const int m = count(a.rows, a.max_rows), quads = a.w.panels / 4;
  if (m <= 0) return;
  const int rows = block_rows(m), blocks = (m + rows - 1) / rows;
  for (Runs run(quads * blocks, 1, c); run.next();)
    for (int p = run.begin; p < run.end; p++)
      gated_unit<FN>(a.w, a.x, a.out, p % quads, p / quads * rows, imin((p / quads + 1) * rows, m), nullptr, c.scratch);
}
// Gate's columns, then up's, of a weight whose panels alternate: `linear` for it.
static void linear_gated(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const LinearArgs*>(args);
  const int m = count(a.rows, a.max_rows), quads = a.w.panels / 4, half = a.columns / 2;
  if (m <= 0) return;
  const int rows = block_rows(m), blocks = (m + rows - 1) / rows;
  float* tmp = reinterpret_cast<float*>(c.scratch + kPanelBuf);
  for (Runs run(quads * blocks, 1, c); run.next();)
    for (int p = run.begin; p < run.end; p++) {
      const int q = p % quads, r0 = p / quads * rows, r1 = imin(r0 + rows, m), n = half - 32 * q;
      panels(a.w, 4 * q, 4, a.x, r0, r1, reinterpret_cast<uint8_t*>(c.scratch), tmp, 64, false);
      for (int r = r0; r < r1; r++)
        for (int i = 0; i < 64; i += 16) {
          float* o = a.out + size_t(r) * a.ld_out + i / 32 * half + 32 * q + i % 32;
          if (n > i % 32) fstore_n(o, fload(tmp + (r - r0) * 64 + i), n - i % 32);
        }
    }
}
static void gated_linear(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const GatedLinearArgs*>(args);
  if (a.gate == kSilu) gated_rows<kSilu>(a, c);
  else if (a.gate == kGeluTanh) gated_rows<kGeluTanh>(a, c);
  else gated_rows<kGelu>(a, c);
}

}  // namespace ISA
