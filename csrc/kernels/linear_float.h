// Linear layers on bf16, f16 and float32 panels with float32 activations: one FMA per k, k ascending.
#pragma once

namespace ISA {

constexpr int kBlockK = 128;           // depth of a block: two panels of floats (16 KB) stay in L1

// Two k of P panels as floats.
template <int KIND, int P> static ALWAYS void load_pair(const uint8_t* w, size_t panel, F lo[P], F hi[P]) {
  UNROLL for (int p = 0; p < P; p++) {
    const uint8_t* q = w + p * panel;
    if (KIND == kBF16) {
      const I v = iload(q);
      lo[p] = from_bits(ishl<16>(v));
      hi[p] = from_bits(iand(v, iset(int(0xffff0000))));
    } else if (KIND == kF16) {
      lo[p] = load_f16(reinterpret_cast<const uint16_t*>(q));
      hi[p] = load_f16(reinterpret_cast<const uint16_t*>(q + 32));
    } else {
      lo[p] = fload(reinterpret_cast<const float*>(q));
      hi[p] = fload(reinterpret_cast<const float*>(q + 64));
    }
  }
}
constexpr size_t pair_bytes(int kind) { return kind == kF32 ? 128 : 64; }

// NEXT: bytes of a pair of k in the panels that come next.
template <int KIND, int NEXT, int R, int P>
static void tile_float(const uint8_t* w, size_t panel, const float* x, size_t ldx, int pairs, float* y, size_t ld, bool resume, Ahead next) {
  F a[P][R];
  UNROLL for (int p = 0; p < P; p++) UNROLL for (int r = 0; r < R; r++) a[p][r] = resume ? fload(y + r * ld + 16 * p) : fzero();
  constexpr size_t bytes = pair_bytes(KIND);
  for (int k = 0; k < pairs; k++, w += bytes, x += 2) {
    F lo[P], hi[P];
    load_pair<KIND, P>(w, panel, lo, hi);
    next.fetch<NEXT * P>();
    UNROLL for (int r = 0; r < R; r++) {
      const F u = fset(x[r * ldx]);
      UNROLL for (int p = 0; p < P; p++) a[p][r] = fma(lo[p], u, a[p][r]);
    }
    UNROLL for (int r = 0; r < R; r++) {
      const F u = fset(x[r * ldx + 1]);
      UNROLL for (int p = 0; p < P; p++) a[p][r] = fma(hi[p], u, a[p][r]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) fstore(y + r * ld + 16 * p, a[p][r]);
}
template <int KIND> static void widen(const uint8_t* w, int pairs, float* o) {
  for (int k = 0; k < pairs; k++, w += 64, o += 32) {
    F lo[1], hi[1];
    load_pair<KIND, 1>(w, 0, lo, hi);
    fstore(o, lo[0]);
    fstore(o + 16, hi[0]);
  }
}

template <int KIND, int P>
static void panels_kind(const WeightView& w, int nb, const ActView& x, int r0, int r1, uint8_t* buf, float* o, size_t ld, bool resume) {
  constexpr size_t bytes = pair_bytes(KIND);
  const uint8_t* p0 = w.w + w.panel * nb;
  const bool flat = KIND != kF32 && r1 - r0 > 24;
  const int pairs = (w.k + 1) / 2, step = r1 - r0 > kFR ? kBlockK / 2 : pairs;
  for (int k0 = 0; k0 < pairs; k0 += step) {
    const int n = imin(step, pairs - k0);
    const uint8_t* pk = p0 + bytes * k0;
    if (flat)
      for (int p = 0; p < P; p++) widen<KIND>(pk + w.panel * p, n, reinterpret_cast<float*>(buf) + size_t(32) * n * p);
    for (int r = r0, m; r < r1; r += m) {
      m = imin(kFR, r1 - r);
      const float* xr = x.f + size_t(r) * x.stride + 2 * k0;
      float* ot = o + (r - r0) * ld;
      const bool go_on = resume || k0 > 0;
      const Ahead next{P > 1 && r == r0 ? p0 + P * (w.panel + bytes * k0) : nullptr};
      with_rows<kFR>(m, [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        if (flat) tile_float<kF32, bytes, R, P>(buf, size_t(128) * n, xr, x.stride, n, ot, ld, go_on, next);
        else tile_float<KIND, bytes, R, P>(pk, w.panel, xr, x.stride, n, ot, ld, go_on, next);
      });
    }
  }
}
template <int P>
static void panels_float(const WeightView& w, int nb, const ActView& x, int r0, int r1, uint8_t* buf, float* o, size_t ld, bool resume) {
  if (w.kind == kBF16) panels_kind<kBF16, P>(w, nb, x, r0, r1, buf, o, ld, resume);
  else if (w.kind == kF16) panels_kind<kF16, P>(w, nb, x, r0, r1, buf, o, ld, resume);
  else panels_kind<kF32, P>(w, nb, x, r0, r1, buf, o, ld, resume);
}

}  // namespace ISA
