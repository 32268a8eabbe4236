// Linear layers on int4 and int8 panels with int8 activations.
//
// Lane = output column. For each group of 32 k: eight exact integer dot steps, then one or two float FMAs, groups in
// ascending order. An output therefore goes through the same operations whatever the number of rows, and whichever of the
// paths below (few rows, many rows, with or without unpacking, k in blocks) computes it.
#pragma once

namespace ISA {

template <int R, int P> struct Acc {
  F f[P][R];
  I i[P][R];
};
// Starts from what is in y: a bias, or what an earlier block of k left. A float stored and loaded again is the same float.
template <int R, int P> static ALWAYS void start(Acc<R, P>& a, const float* y, size_t ld, bool resume) {
  UNROLL for (int p = 0; p < P; p++) UNROLL for (int r = 0; r < R; r++) a.f[p][r] = resume ? fload(y + r * ld + 16 * p) : fzero();
}
template <int R, int P, bool MIN> static ALWAYS void begin_group(Acc<R, P>& a, const Group* x) {
  UNROLL for (int r = 0; r < R; r++) {
    const I v = MIN || !kBiased ? izero() : iset(x[r].i);
    UNROLL for (int p = 0; p < P; p++) a.i[p][r] = v;
  }
}
template <int R, int P, bool MIN> static ALWAYS void dot(Acc<R, P>& a, const I w[P], const Group* x, int j) {
  UNROLL for (int r = 0; r < R; r++) {
    int four;
    __builtin_memcpy(&four, x[r].q + 4 * j, 4);
    const I v = iset(four);
    UNROLL for (int p = 0; p < P; p++) a.i[p][r] = MIN ? dot_u4(a.i[p][r], w[p], v) : dot_s8(a.i[p][r], w[p], v);
  }
}
template <int R, int P, bool MIN> static ALWAYS void end_group(Acc<R, P>& a, const F d[P], const F m[P], const Group* x) {
  UNROLL for (int r = 0; r < R; r++) {
    const F xd = fset(x[r].d), xs = fset(x[r].s);
    UNROLL for (int p = 0; p < P; p++) {
      a.f[p][r] = fma(to_float(MIN ? sum_u4(a.i[p][r]) : a.i[p][r]), mul(d[p], xd), a.f[p][r]);
      if (MIN) a.f[p][r] = fma(m[p], xs, a.f[p][r]);
    }
  }
}
template <int R, int P> static ALWAYS void put(const Acc<R, P>& a, float* y, size_t ld) {
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int p = 0; p < P; p++) fstore(y + r * ld + 16 * p, a.f[p][r]);
}

// Fetches what lies at p, piece by piece: the panel that comes next, while the first rows of this one are computed. Those rows take
// one panel after the other, since memory is fastest in the order of its addresses: reading two in turn reaches half of that.
struct Ahead {
  const uint8_t* p;                    // or null: nothing to fetch
  template <int BYTES> ALWAYS void fetch() {
    if (!p) return;
    UNROLL for (int i = 0; i < BYTES; i += 64) prefetch(p + i);
    p += BYTES;
  }
};

// R rows (x: their groups inside one tile) times P panels, int4.
template <int R, int P>
static void tile_int4(const uint8_t* w, size_t panel, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R, P> a;
  start(a, y, ld, resume);
  const I low = nibble_mask();
  for (int g = 0; g < groups; g++, w += 320, x += kTileRows) {
    begin_group<R, P, true>(a, x);
    UNROLL for (int j = 0; j < 4; j++) {
      I v[P], u[P];
      UNROLL for (int p = 0; p < P; p++) v[p] = iload(w + p * panel + 64 + 64 * j), u[p] = iand(v[p], low);
      dot<R, P, true>(a, u, x, 2 * j);
      UNROLL for (int p = 0; p < P; p++) u[p] = iand(ishr<4>(v[p]), low);
      dot<R, P, true>(a, u, x, 2 * j + 1);
    }
    F d[P], m[P];
    UNROLL for (int p = 0; p < P; p++) {
      auto s = reinterpret_cast<const uint16_t*>(w + p * panel);
      d[p] = load_f16(s), m[p] = load_f16(s + 16);
    }
    next.fetch<320 * P>();
    end_group<R, P, true>(a, d, m, x);
  }
  put(a, y, ld);
}
// From an even group on.
template <int R, int P>
static void tile_int8(const uint8_t* w, size_t panel, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R, P> a;
  start(a, y, ld, resume);
  for (int g = 0; g < groups; g++, x += kTileRows) {
    const uint8_t *s = w + 32 * (g % 2), *q = w + 64 + 512 * (g % 2);
    w += g % 2 * kInt8Pair;
    begin_group<R, P, false>(a, x);
    UNROLL for (int j = 0; j < 8; j++) {
      I v[P];
      UNROLL for (int p = 0; p < P; p++) v[p] = prep_s8(iload(q + p * panel + 64 * j));
      dot<R, P, false>(a, v, x, j);
    }
    F d[P];
    UNROLL for (int p = 0; p < P; p++) d[p] = load_f16(reinterpret_cast<const uint16_t*>(s + p * panel));
    next.fetch<544 * P>();
    end_group<R, P, false>(a, d, d, x);
  }
  put(a, y, ld);
}
// Panels of either kind that were unpacked before, group by group: { f32 d[16], f32 m[16], 8 x 64 bytes }.
constexpr size_t kFlatGroup = 640;
template <int R, int P, bool MIN>
static void tile_flat(const uint8_t* w, size_t panel, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R, P> a;
  start(a, y, ld, resume);
  for (int g = 0; g < groups; g++, w += kFlatGroup, x += kTileRows) {
    begin_group<R, P, MIN>(a, x);
    UNROLL for (int j = 0; j < 8; j++) {
      I v[P];
      UNROLL for (int p = 0; p < P; p++) v[p] = iload(w + p * panel + 128 + 64 * j);
      dot<R, P, MIN>(a, v, x, j);
    }
    F d[P], m[P];
    UNROLL for (int p = 0; p < P; p++) {
      d[p] = fload(reinterpret_cast<const float*>(w + p * panel));
      m[p] = fload(reinterpret_cast<const float*>(w + p * panel + 64));
    }
    next.fetch<320 * P>();
    end_group<R, P, MIN>(a, d, m, x);
  }
  put(a, y, ld);
}
static void flatten_int4(const uint8_t* p, int groups, uint8_t* o) {
  const I low = nibble_mask();
  for (int g = 0; g < groups; g++, p += 320, o += kFlatGroup) {
    fstore(reinterpret_cast<float*>(o), load_f16(reinterpret_cast<const uint16_t*>(p)));
    fstore(reinterpret_cast<float*>(o + 64), load_f16(reinterpret_cast<const uint16_t*>(p + 32)));
    for (int j = 0; j < 4; j++) {
      const I v = iload(p + 64 + 64 * j);
      istore(o + 128 + 128 * j, iand(v, low));
      istore(o + 192 + 128 * j, iand(ishr<4>(v), low));
    }
  }
}

constexpr int kBlockGroups = 18;       // groups of k in a block: two unpacked panels and a tile of rows stay in a 32 KB L1

// Rows r0 .. r1 (in pieces that a tile of activations and the registers hold) times P panels. o is where row r0 goes.
template <int P>
static void panels_int(const WeightView& w, int nb, const ActView& x, int r0, int r1, uint8_t* buf, float* o, size_t ld, bool resume) {
  const bool flat = w.kind == kInt4 && r1 - r0 > 24;
  const int step = r1 - r0 > kTileRows ? kBlockGroups : w.groups;
  for (int g0 = 0; g0 < w.groups; g0 += step) {
    const int n = imin(step, w.groups - g0);
    const uint8_t* pk = w.w + w.panel * nb + (w.kind == kInt4 ? 320 * size_t(g0) : int8_scales(g0));
    if (flat)
      for (int p = 0; p < P; p++) flatten_int4(pk + w.panel * p, n, buf + n * kFlatGroup * p);
    for (int r = r0, m; r < r1; r += m) {
      m = imin(kMR, imin(r1 - r, kTileRows - r % kTileRows));
      const Group* xt = group_at(x, r, g0);
      float* ot = o + (r - r0) * ld;
      const bool go_on = resume || g0 > 0;
      with_rows<kMR>(m, [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        if (flat) {
          tile_flat<R, P, true>(buf, n * kFlatGroup, xt, n, ot, ld, go_on, Ahead{r == r0 ? pk + P * w.panel : nullptr});
        } else if (r == r0) {
          for (int p = 0; p < P; p++) {
            const uint8_t* one = pk + w.panel * p;
            const Ahead next{P > 1 ? one + w.panel : nullptr};
            if (w.kind == kInt4) tile_int4<R, 1>(one, w.panel, xt, n, ot + 16 * p, ld, go_on, next);
            else tile_int8<R, 1>(one, w.panel, xt, n, ot + 16 * p, ld, go_on, next);
          }
        } else {
          if (w.kind == kInt4) tile_int4<R, P>(pk, w.panel, xt, n, ot, ld, go_on, Ahead{nullptr});
          else tile_int8<R, P>(pk, w.panel, xt, n, ot, ld, go_on, Ahead{nullptr});
        }
      });
    }
  }
}

}  // namespace ISA
