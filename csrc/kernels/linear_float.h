// Linear layers on bf16, f16 and float32 panels with float32 activations: one FMA per k, k ascending.
#pragma once

namespace ISA {

constexpr int kBlockK = 128;           // depth of a block: a panel of floats, the next one and a tile of rows stay in a 32 KB L1

// Two k of a panel as floats.
template <int KIND> static ALWAYS void load_pair(const uint8_t* q, F* lo, F* hi) {
  if (KIND == kBF16) {
    const I v = iload(q);
    *lo = from_bits(ishl<16>(v));
    *hi = from_bits(iand(v, iset(int(0xffff0000))));
  } else if (KIND == kF16) {
    *lo = load_f16(reinterpret_cast<const uint16_t*>(q));
    *hi = load_f16(reinterpret_cast<const uint16_t*>(q + 32));
  } else {
    *lo = fload(reinterpret_cast<const float*>(q));
    *hi = fload(reinterpret_cast<const float*>(q + 64));
  }
}
constexpr size_t pair_bytes(int kind) { return kind == kF32 ? 128 : 64; }

// R rows of floats, `stride` apart. By threes: a base for each three and the stride reach them all, so the addresses stay in
// registers.
template <int R> struct Rows {
  const float* base[(R + 2) / 3];
  size_t stride;
  ALWAYS Rows(const float* x, size_t stride) : stride(stride) {
    UNROLL for (int i = 0; i < (R + 2) / 3; i++) base[i] = x + size_t(3 * i) * stride;
  }
  ALWAYS float at(int r, int k) const { return base[r / 3][size_t(r % 3) * stride + k]; }
  ALWAYS void forward(int k) { UNROLL for (int i = 0; i < (R + 2) / 3; i++) base[i] += k; }
};

template <int KIND, int R>
static void tile_float(const uint8_t* w, const float* x0, size_t stride, int pairs, float* y, size_t ld, bool resume, Ahead next) {
  Rows<R> x(x0, stride);
  F a[R];
  UNROLL for (int r = 0; r < R; r++) a[r] = resume ? fload(y + r * ld) : fzero();
  for (const uint8_t* end = w + pair_bytes(KIND) * pairs; w < end; w += pair_bytes(KIND)) {
    F lo, hi;
    load_pair<KIND>(w, &lo, &hi);
    next.fetch<R>();
    if (KIND == kF32) next.fetch<R>();
    UNROLL for (int r = 0; r < R; r++) a[r] = fma(lo, fset(x.at(r, 0)), a[r]);
    UNROLL for (int r = 0; r < R; r++) a[r] = fma(hi, fset(x.at(r, 1)), a[r]);
    x.forward(2);
  }
  UNROLL for (int r = 0; r < R; r++) fstore(y + r * ld, a[r]);
}
template <int KIND> static void widen(const uint8_t* w, int pairs, float* o) {
  for (int k = 0; k < pairs; k++, w += 64, o += 32) {
    F lo, hi;
    load_pair<KIND>(w, &lo, &hi);
    fstore(o, lo);
    fstore(o + 16, hi);
  }
}

template <int KIND>
static void panel_kind(const WeightView& w, int nb, const ActView& x, int r0, int r1, uint8_t* buf, float* o, size_t ld, bool resume) {
  constexpr int bytes = int(pair_bytes(KIND));
  const int tiles = (r1 - r0 + kFR - 1) / kFR;
  const bool flat = KIND != kF32 && r1 - r0 > kUnpackRows;
  const int pairs = (w.k + 1) / 2, step = tiles > 1 ? kBlockK / 2 : pairs;
  for (int k0 = 0; k0 < pairs; k0 += step) {
    const int n = imin(step, pairs - k0);
    const uint8_t* pk = w.w + w.panel * nb + size_t(bytes) * k0;
    if (flat) widen<KIND>(pk, n, reinterpret_cast<float*>(buf));
    for (int i = 0, r = r0, m; i < tiles; i++, r += m) {
      m = r0 + (r1 - r0) * (i + 1) / tiles - r;
      const float* xr = x.f + size_t(r) * x.stride + 2 * k0;
      float* ot = o + (r - r0) * ld;
      const bool go_on = resume || k0 > 0;
      const Ahead next = share_ahead(pk, n * bytes, n * (flat ? 2 : int(bytes / 64)), r - r0, m, r1 - r0);
      with_rows<kFR>(m, [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        if (flat) tile_float<kF32, R>(buf, xr, x.stride, n, ot, ld, go_on, next);
        else tile_float<KIND, R>(pk, xr, x.stride, n, ot, ld, go_on, next);
      });
    }
  }
}
static void panel_float(const WeightView& w, int nb, const ActView& x, int r0, int r1, uint8_t* buf, float* o, size_t ld, bool resume) {
  if (w.kind == kBF16) panel_kind<kBF16>(w, nb, x, r0, r1, buf, o, ld, resume);
  else if (w.kind == kF16) panel_kind<kF16>(w, nb, x, r0, r1, buf, o, ld, resume);
  else panel_kind<kF32>(w, nb, x, r0, r1, buf, o, ld, resume);
}

}  // namespace ISA
