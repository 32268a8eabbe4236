// Panels of the smallest block types: numbers of 2 or 3 bits, with a whole factor for each 16 of them and half precision scales for 256.
// Pictures: docs/kernels.md. Otherwise as linear_int.h, with sums of 16 where that has sums of 32.
#pragma once

namespace ISA {

// Where a group of a panel begins, and its bytes. Of the smallest kinds groups go by eights.
static ALWAYS size_t group_start(int kind, int g) {
  if (kind <= kIq3x) return kLevelGroup * size_t(g);
  if (kind <= kIq1) return kThreeSuper * size_t(g / 8) + kThreeGroup * size_t(g % 8);
  if (kind == kQ2) return kTwoSuper * size_t(g / 8) + kTwoGroup * size_t(g % 8);
  return kind == kInt4 ? kInt4Group * size_t(g) : int8_scales(g);
}

// Of IQ2 and IQ1. Four of the dot steps of a group: its first 16 k or its last.
template <int R, int H> static ALWAYS void begin_half(Acc<R>& a, const Group* x) {
  UNROLL for (int r = 0; r < R; r++) a.i[r] = kBiased ? iset(H ? x[r].i - x[r].first : x[r].first) : izero();
}
template <int R> static ALWAYS void end_half(Acc<R>& a, F d, const Group* x) {
  UNROLL for (int r = 0; r < R; r++) a.f[r] = fma(to_float(a.i[r]), mul(d, fset(x[r].d)), a.f[r]);
}
// Bit J of each byte, as bit 2.
template <int J> static ALWAYS I third_bit(I v) {
  const I four = iset(0x04040404);
  if constexpr (J < 2) return iand(ishl<2 - J>(v), four);
  else if constexpr (J == 2) return iand(v, four);
  else return iand(ishr<J - 2>(v), four);
}
template <int T> static ALWAYS I two_bits(I v) {
  if constexpr (T == 0) return iand(v, iset(0x03030303));
  else return iand(ishr<2 * T>(v), iset(0x03030303));
}
template <int R, int H> static ALWAYS void dots3(Acc<R>& a, I v, I high, I levels, const Group* x) {
  dot<R, false>(a, prep_s8(look_up(levels, iadd(two_bits<0>(v), third_bit<4 * H>(high)))), x, 4 * H);
  dot<R, false>(a, prep_s8(look_up(levels, iadd(two_bits<1>(v), third_bit<4 * H + 1>(high)))), x, 4 * H + 1);
  dot<R, false>(a, prep_s8(look_up(levels, iadd(two_bits<2>(v), third_bit<4 * H + 2>(high)))), x, 4 * H + 2);
  dot<R, false>(a, prep_s8(look_up(levels, iadd(two_bits<3>(v), third_bit<4 * H + 3>(high)))), x, 4 * H + 3);
}

// Groups g .. g + groups - 1 of a panel at p.
template <int R> static NOINLINE void tile_three(const uint8_t* p, int kind, int g, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R> a;
  start(a, y, ld, resume);
  const I levels = table16(kLevels[kind]);
  const F unit = fset(kUnits[kind]);
  for (const int end = g + groups; g < end; g++, x += kTileRows) {
    const uint8_t *s = p + kThreeSuper * size_t(g / 8), *w = s + 32 + kThreeGroup * size_t(g % 8);
    const F d = mul(load_f16(reinterpret_cast<const uint16_t*>(s)), unit);
    const I high = iload(w + 160);
    next.fetch<R>();
    begin_half<R, 0>(a, x);
    dots3<R, 0>(a, iload(w + 32), high, levels, x);
    end_half<R>(a, mul(d, to_float(load_i8(w))), x);
    next.fetch<R>();
    begin_half<R, 1>(a, x);
    dots3<R, 1>(a, iload(w + 96), high, levels, x);
    end_half<R>(a, mul(d, to_float(load_i8(w + 16))), x);
    next.fetch<R>();
  }
  put(a, y, ld);
}

// Of Q3_K and Q2_K a factor times a number fits a byte, and one product makes four of them: nothing is carried from byte to byte. So a
// group is one of int8 to the dots, of few rows as it is read and of many in a buffer, with the same sums of whole numbers.
//
// Byte J of each k of Q3_K: 128 - factor (place - 4), for the scale -d. Factors are -32 .. 31: 0 .. 252.
template <int J> static ALWAYS I byte_q3(const uint8_t* w, I high) {
  const I f = load_i8(w + 16 * (J / 4)), v = iadd(two_bits<J % 4>(iload(w + 32 + 64 * (J / 4))), third_bit<J>(high));
  return iadd(imul(iadd(iset(128), ishl<2>(f)), iset(0x01010101)), imul(v, imul(f, iset(-1))));
}
// Of Q2_K: 128 + factor q, up to 173.
template <int J> static ALWAYS I byte_q2(const uint8_t* w, I) {
  const I f = iand(load_i8(w + 16 * (J / 4)), iset(15));
  return iadd(iset(int(0x80808080)), imul(two_bits<J % 4>(iload(w + 32 + 64 * (J / 4))), f));
}
template <int H> static ALWAYS F least_q2(F m, const uint8_t* w) { return mul(m, to_float(iand(ishr<4>(load_i8(w + 16 * H)), iset(15)))); }
template <int R> static ALWAYS void end_two(Acc<R>& a, F d, F low, F high, const Group* x) {
  UNROLL for (int r = 0; r < R; r++) {
    a.f[r] = fma(to_float(a.i[r]), mul(d, fset(x[r].d)), a.f[r]);
    a.f[r] = fnma(low, fset(x[r].low), a.f[r]);
    a.f[r] = fnma(high, fset(x[r].high), a.f[r]);
  }
}
template <int KIND, int J> static ALWAYS I small_byte(const uint8_t* w, I high) {
  if constexpr (KIND == kQ3) return byte_q3<J>(w, high);
  else return byte_q2<J>(w, high);
}
template <int KIND, class Fn> static ALWAYS void each_byte(const uint8_t* w, Fn f) {
  const I high = KIND == kQ3 ? iload(w + 160) : izero();
  f(small_byte<KIND, 0>(w, high), 0), f(small_byte<KIND, 1>(w, high), 1), f(small_byte<KIND, 2>(w, high), 2), f(small_byte<KIND, 3>(w, high), 3);
  f(small_byte<KIND, 4>(w, high), 4), f(small_byte<KIND, 5>(w, high), 5), f(small_byte<KIND, 6>(w, high), 6), f(small_byte<KIND, 7>(w, high), 7);
}
template <int R, int KIND> static NOINLINE void tile_small(const uint8_t* p, int g, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R> a;
  start(a, y, ld, resume);
  for (const int end = g + groups; g < end; g++, x += kTileRows) {
    const uint8_t *s = p + (KIND == kQ3 ? kThreeSuper : kTwoSuper) * size_t(g / 8), *w = p + group_start(KIND, g) + (KIND == kQ3 ? 32 : 64);
    begin_group<R, false>(a, x);
    each_byte<KIND>(w, [&](I v, int j) { dot<R, false>(a, prep_s8(v), x, j); });
    UNROLL for (int i = 0; i < 3; i++) next.fetch<R>();
    const F d = load_f16(reinterpret_cast<const uint16_t*>(s));
    if constexpr (KIND == kQ3) {
      const F minus = neg(d);
      end_group<R, false>(a, minus, minus, x);
    } else {
      const F m = load_f16(reinterpret_cast<const uint16_t*>(s + 32));
      end_two<R>(a, d, least_q2<0>(m, w), least_q2<1>(m, w), x);
    }
  }
  put(a, y, ld);
}

// Groups g .. of a panel, each { f32 d[16], f32 of the minimum[2][16], 8 x 64 bytes }.
constexpr size_t kBytesGroup = 704;
template <int KIND> static void flatten_small(const uint8_t* p, int g, int groups, uint8_t* o) {
  for (const int end = g + groups; g < end; g++, o += kBytesGroup) {
    const uint8_t *s = p + (KIND == kQ3 ? kThreeSuper : kTwoSuper) * size_t(g / 8), *w = p + group_start(KIND, g) + (KIND == kQ3 ? 32 : 64);
    float* f = reinterpret_cast<float*>(o);
    const F d = load_f16(reinterpret_cast<const uint16_t*>(s));
    fstore(f, KIND == kQ3 ? neg(d) : d);
    if constexpr (KIND == kQ2) {
      const F m = load_f16(reinterpret_cast<const uint16_t*>(s + 32));
      fstore(f + 16, least_q2<0>(m, w)), fstore(f + 32, least_q2<1>(m, w));
    }
    each_byte<KIND>(w, [&](I v, int j) { istore(o + 192 + 64 * j, v); });
  }
}
template <int R, int KIND> static NOINLINE void tile_bytes(const uint8_t* o, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  Acc<R> a;
  start(a, y, ld, resume);
  for (int g = 0; g < groups; g++, o += kBytesGroup, x += kTileRows) {
    const float* f = reinterpret_cast<const float*>(o);
    begin_group<R, false>(a, x);
    UNROLL for (int j = 0; j < 8; j++) dot<R, false>(a, prep_s8(iload(o + 192 + 64 * j)), x, j);
    UNROLL for (int i = 0; i < 3; i++) next.fetch<R>();
    if constexpr (KIND == kQ3) end_group<R, false>(a, fload(f), fload(f), x);
    else end_two<R>(a, fload(f), fload(f + 16), fload(f + 32), x);
  }
  put(a, y, ld);
}
template <int R, int KIND> static ALWAYS void small_rows(bool flat, const uint8_t* buf, const uint8_t* p, int g, const Group* x, int groups, float* y, size_t ld, bool resume, Ahead next) {
  if (flat) tile_bytes<R, KIND>(buf, x, groups, y, ld, resume, next);
  else tile_small<R, KIND>(p, g, x, groups, y, ld, resume, next);
}

// ---- packing, and reading back ----------------------------------------------------------------------------------------------
// Group g of a row { half d, 16 factors, 256 places in the table }, which a block of 256 is brought to before.
static ALWAYS void lane_three(uint8_t* panel, int g, int lane, const uint8_t* row) {
  const uint8_t *b = row + 274 * size_t(g / 8), *q = b + 18 + 32 * (g % 8);
  uint8_t *s = panel + kThreeSuper * size_t(g / 8), *w = s + 32 + kThreeGroup * size_t(g % 8);
  if (g % 8 == 0) put_half(s + 2 * lane, half_at(b));
  for (int h = 0; h < 2; h++) w[16 * h + lane] = b[2 + 2 * (g % 8) + h];
  for (int i = 0; i < 4; i++) {
    unsigned low[2] = {0, 0}, high = 0;
    for (int j = 0; j < 8; j++) low[j / 4] |= (q[4 * j + i] & 3u) << (2 * (j % 4)), high |= (q[4 * j + i] >> 2 & 1u) << j;
    w[32 + 4 * lane + i] = uint8_t(low[0]), w[96 + 4 * lane + i] = uint8_t(low[1]), w[160 + 4 * lane + i] = uint8_t(high);
  }
}
// Group g of a row of Q2_K.
static ALWAYS void lane_two(uint8_t* panel, int g, int lane, const uint8_t* row) {
  const uint8_t *b = row + 84 * size_t(g / 8), *q = b + 16 + 32 * (g % 8 / 4);
  uint8_t *s = panel + kTwoSuper * size_t(g / 8), *w = s + 64 + kTwoGroup * size_t(g % 8);
  if (g % 8 == 0) put_half(s + 2 * lane, half_at(b + 80)), put_half(s + 32 + 2 * lane, half_at(b + 82));
  for (int h = 0; h < 2; h++) {
    w[16 * h + lane] = b[2 * (g % 8) + h];
    for (int i = 0; i < 4; i++) {
      unsigned v = 0;
      for (int t = 0; t < 4; t++) v |= (q[16 * h + 4 * t + i] >> (2 * (g % 4)) & 3u) << (2 * t);
      w[32 + 64 * h + 4 * lane + i] = uint8_t(v);
    }
  }
}
// What a lane of group g holds.
static ALWAYS void read_three(const uint8_t* panel, int kind, int g, int lane, float* out) {
  const uint8_t *s = panel + kThreeSuper * size_t(g / 8), *w = s + 32 + kThreeGroup * size_t(g % 8);
  const float d = f16_to_f32(half_at(s + 2 * lane)) * kUnits[kind];
  for (int k = 0; k < 32; k++) {
    const int j = k / 4, i = 4 * lane + k % 4, v = (w[32 + 64 * (j / 4) + i] >> (2 * (j % 4)) & 3) | (w[160 + i] >> j & 1) << 2;
    out[k] = d * float(int8_t(w[16 * (k / 16) + lane])) * float(int(kLevels[kind][v]) - 128);
  }
}
static ALWAYS void read_two(const uint8_t* panel, int g, int lane, float* out) {
  const uint8_t *s = panel + kTwoSuper * size_t(g / 8), *w = s + 64 + kTwoGroup * size_t(g % 8);
  const float d = f16_to_f32(half_at(s + 2 * lane)), m = f16_to_f32(half_at(s + 32 + 2 * lane));
  for (int k = 0; k < 32; k++) {
    const int j = k / 4, both = w[16 * (k / 16) + lane], v = w[32 + 64 * (j / 4) + 4 * lane + k % 4] >> (2 * (j % 4)) & 3;
    out[k] = d * float(both & 15) * float(v) - m * float(both >> 4);
  }
}

// ---- panels of all kinds of groups ------------------------------------------------------------------------------------------
constexpr int kMoreRows = 2 * kTileRows;       // with more, places in a table are looked up before
constexpr int kBlockGroups = 18;       // groups of k in a block: it, the next one and a tile of rows stay in a 32 KB L1

// Rows r0 .. r1 (in pieces that a tile of activations and the registers hold) times a panel. o is where row r0 goes.
static void panel_int(const WeightView& w, int nb, const ActView& x, int r0, int r1, uint8_t* buf, float* o, size_t ld, bool resume) {
  const int tiles = (r1 - r0 + kMR - 1) / kMR, step = tiles > 1 ? kBlockGroups : w.groups;
  const bool looked_up = w.kind <= kIq3x, small = !looked_up && w.kind <= kQ2;
  const bool by_bytes = w.kind == kQ3 || w.kind == kQ2, flat = r1 - r0 > (by_bytes ? kMR : looked_up && kUnpackRows > kMoreRows ? kMoreRows : kUnpackRows) && w.kind != kInt8 && (by_bytes || !small);
  for (int g0 = 0; g0 < w.groups; g0 += step) {
    const int n = imin(step, w.groups - g0);
    const uint8_t *panel = w.w + w.panel * nb, *pk = panel + group_start(w.kind, g0);
    if (flat && w.kind == kQ3) flatten_small<kQ3>(panel, g0, n, buf);
    else if (flat && w.kind == kQ2) flatten_small<kQ2>(panel, g0, n, buf);
    else if (flat) looked_up ? flatten_levels(pk, kLevels[w.kind], n, buf) : flatten_int4(pk, n, buf);
    const bool eights = w.kind == kInt8 || (flat && looked_up);
    const int bytes = int(group_start(w.kind, g0 + n) - group_start(w.kind, g0)), calls = n * (eights ? 9 : small ? 3 : flat ? 1 : 5);
    for (int r = r0, m; r < r1; r += m) {
      m = imin(kMR, imin(r1 - r, kTileRows - r % kTileRows));
      const Group* xt = group_at(x, r, g0);
      float* ot = o + (r - r0) * ld;
      const bool go_on = resume || g0 > 0;
      const Ahead next = share_ahead(pk, bytes, calls, r - r0, m, r1 - r0);
      with_rows<kMR>(m, [&](auto rows) {
        constexpr int R = decltype(rows)::value;
        if (w.kind == kQ3) small_rows<R, kQ3>(flat, buf, panel, g0, xt, n, ot, ld, go_on, next);
        else if (w.kind == kQ2) small_rows<R, kQ2>(flat, buf, panel, g0, xt, n, ot, ld, go_on, next);
        else if (eights) tile_int8<R>(flat ? buf : pk, xt, n, ot, ld, go_on, next);
        else if (flat) tile_flat<R>(buf, xt, n, ot, ld, go_on, next);
        else if (w.kind == kInt4) tile_int4<R>(pk, xt, n, ot, ld, go_on, next);
        else if (looked_up) tile_levels<R>(pk, kLevels[w.kind], xt, n, ot, ld, go_on, next);
        else tile_three<R>(panel, w.kind, g0, xt, n, ot, ld, go_on, next);
      });
    }
  }
}

}  // namespace ISA
