// Linear layers on int4 and int8 panels with int8 activations.
//
// Lane = output column. For each group of 32 k: eight exact integer dot steps, then one or two float FMAs, groups in
// ascending order. An output therefore goes through the same operations whatever the number of rows, and whichever of the
// paths below (few rows, many rows, with or without unpacking, k in blocks) computes it.
#pragma once

namespace ISA {

template <int R> struct Acc {
  F f[R];
  I i[R];
};
// Starts from what is in y: a bias, or what an earlier block of k left. A float stored and loaded again is the same float.
template <int R> static ALWAYS void start(Acc<R>& a, const float* y, size_t ld, bool resume) {
  UNROLL for (int r = 0; r < R; r++) a.f[r] = resume ? fload(y + r * ld) : fzero();
}
template <int R, bool MIN> static ALWAYS void begin_group(Acc<R>& a, const Group* x) {
  UNROLL for (int r = 0; r < R; r++) a.i[r] = MIN || !kBiased ? izero() : iset(x[r].i);
}
template <int R, bool MIN> static ALWAYS void dot(Acc<R>& a, I w, const Group* x, int j) {
  UNROLL for (int r = 0; r < R; r++) {
    const int8_t* four = x[r].q + 4 * j;
    if (R > 2) {
      a.i[r] = MIN ? dot_u4_at(a.i[r], w, four) : dot_s8_at(a.i[r], w, four);
    } else {                           // waits for memory: a load of its own goes ahead
      int v;
      __builtin_memcpy(&v, four, 4);
      a.i[r] = MIN ? dot_u4(a.i[r], w, iset(v)) : dot_s8(a.i[r], w, iset(v));
    }
  }
}
template <int R, bool MIN> static ALWAYS void end_group(Acc<R>& a, F d, F m, const Group* x) {
  UNROLL for (int r = 0; r < R; r++) {
    a.f[r] = fma(to_float(MIN ? sum_u4(a.i[r]) : a.i[r]), mul(d, fset(x[r].d)), a.f[r]);
    if (MIN) a.f[r] = fma(m, fset(x[r].s), a.f[r]);
  }
}
template <int R> static ALWAYS void put(const Acc<R>& a, float* y, size_t ld) {
  UNROLL for (int r = 0; r < R; r++) fstore(y + r * ld, a.f[r]);
}

// R rows (x: their groups inside one tile) times a panel, int4.
template <int R> static NOINLINE void tile_int4(const uint8_t* w, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R> a;
  start(a, y, ld, resume);
  const I low = nibble_mask();
  for (int g = 0; g < groups; g++, w += 320, x += kTileRows) {
    begin_group<R, true>(a, x);
    UNROLL for (int j = 0; j < 4; j++) {
      const I v = iload(w + 64 + 64 * j);
      next.fetch<R>();
      dot<R, true>(a, iand(v, low), x, 2 * j);
      dot<R, true>(a, iand(ishr<4>(v), low), x, 2 * j + 1);
    }
    next.fetch<R>();
    auto s = reinterpret_cast<const uint16_t*>(w);
    end_group<R, true>(a, load_f16(s), load_f16(s + 16), x);
  }
  put(a, y, ld);
}
// The same of places in a table: what they stand for is looked up, as int8.
template <int R> static NOINLINE void tile_levels(const uint8_t* w, const uint8_t* table, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R> a;
  start(a, y, ld, resume);
  const I low = nibble_mask(), levels = table16(table);
  for (int g = 0; g < groups; g++, w += kLevelGroup, x += kTileRows) {
    begin_group<R, false>(a, x);
    UNROLL for (int j = 0; j < 4; j++) {
      const I v = iload(w + 32 + 64 * j);
      next.fetch<R>();
      dot<R, false>(a, prep_s8(look_up(levels, iand(v, low))), x, 2 * j);
      dot<R, false>(a, prep_s8(look_up(levels, iand(ishr<4>(v), low))), x, 2 * j + 1);
    }
    next.fetch<R>();
    const F d = load_f16(reinterpret_cast<const uint16_t*>(w));
    end_group<R, false>(a, d, d, x);
  }
  put(a, y, ld);
}
// From an even group on.
template <int R> static NOINLINE void tile_int8(const uint8_t* w, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R> a;
  start(a, y, ld, resume);
  for (int g = 0; g < groups; g++, x += kTileRows) {
    const uint8_t *s = w + 32 * (g % 2), *q = w + 64 + 512 * (g % 2);
    w += g % 2 * kInt8Pair;
    begin_group<R, false>(a, x);
    UNROLL for (int j = 0; j < 8; j++) {
      next.fetch<R>();
      dot<R, false>(a, prep_s8(iload(q + 64 * j)), x, j);
    }
    next.fetch<R>();
    const F d = load_f16(reinterpret_cast<const uint16_t*>(s));
    end_group<R, false>(a, d, d, x);
  }
  put(a, y, ld);
}
// An int4 panel that was unpacked before, group by group: { f32 d[16], f32 m[16], 8 x 64 bytes }.
constexpr size_t kFlatGroup = 640;
template <int R> static NOINLINE void tile_flat(const uint8_t* w, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R> a;
  start(a, y, ld, resume);
  for (int g = 0; g < groups; g++, w += kFlatGroup, x += kTileRows) {
    begin_group<R, true>(a, x);
    UNROLL for (int j = 0; j < 8; j++) dot<R, true>(a, iload(w + 128 + 64 * j), x, j);
    next.fetch<R>();
    end_group<R, true>(a, fload(reinterpret_cast<const float*>(w)), fload(reinterpret_cast<const float*>(w + 64)), x);
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

// As a panel of int8.
static void flatten_levels(const uint8_t* p, const uint8_t* table, int groups, uint8_t* o) {
  const I low = nibble_mask(), levels = table16(table);
  for (int g = 0; g < groups; g++, p += kLevelGroup) {
    uint8_t* q = o + int8_values(g);
    __builtin_memcpy(o + int8_scales(g), p, 32);
    for (int j = 0; j < 4; j++) {
      const I v = iload(p + 32 + 64 * j);
      istore(q + 128 * j, look_up(levels, iand(v, low)));
      istore(q + 128 * j + 64, look_up(levels, iand(ishr<4>(v), low)));
    }
  }
}

}  // namespace ISA
