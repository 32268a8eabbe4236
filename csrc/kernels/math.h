// Functions of sixteen floats, and the writing of activations.
#pragma once

namespace ISA {

#define UNROLL _Pragma("GCC unroll 16")
#define NOINLINE __attribute__((noinline))       // for a register tile: all registers are its own

// e^x to about 1 ulp; exactly 1 at 0, 0 below -104.
static ALWAYS F vexp(F x) {
  x = vmin(vmax(x, fset(-104.f)), fset(88.f));
  const F n = vround(mul(x, fset(1.44269504089f)));
  F r = fnma(n, fset(0.693359375f), x);                    // ln 2 in two parts
  r = fnma(n, fset(-2.12194440e-4f), r);
  F p = fset(1.f / 720);
  p = fma(p, r, fset(1.f / 120));
  p = fma(p, r, fset(1.f / 24));
  p = fma(p, r, fset(1.f / 6));
  p = fma(p, r, fset(0.5f));
  p = fma(p, r, fset(1.f));
  p = fma(p, r, fset(1.f));
  return scale2(p, n);
}
static ALWAYS F neg(F x) { return sub(fzero(), x); }
static ALWAYS F vabs(F x) { return from_bits(iand(bits(x), iset(0x7fffffff))); }
static ALWAYS F keep_nan(F x, F y) { return pick(is_nan(x), x, y); }

static ALWAYS F silu(F x) { return div(x, add(fset(1.f), vexp(neg(x)))); }

// tanh(x) = sign(x) (1 - e) / (1 + e), e = exp(-2 |x|); near 0, where that cancels, an odd polynomial.
static ALWAYS F vtanh(F x) {
  const F a = vabs(x), e = vexp(mul(a, fset(-2.f)));
  const F big = div(sub(fset(1.f), e), add(fset(1.f), e));
  const F signed_big = pick(gt(fzero(), x), neg(big), big);
  const F y = mul(x, x);
  F p = fset(62.f / 2835);
  p = fma(p, y, fset(-17.f / 315));
  p = fma(p, y, fset(2.f / 15));
  p = fma(p, y, fset(-1.f / 3));
  const F small = fma(mul(p, y), x, x);
  return keep_nan(x, pick(gt(fset(0.2f), a), small, signed_big));
}

// x / 2 (1 + tanh(z)) = x / (1 + exp(-2 z)), z = sqrt(2 / pi) (x + 0.044715 x^3)
static ALWAYS F gelu_tanh(F x) {
  const F z = mul(fset(0.7978845608f), fma(mul(mul(x, x), x), fset(0.044715f), x));
  return div(x, add(fset(1.f), vexp(mul(z, fset(-2.f)))));
}

// x / 2 (1 + erf(x / sqrt 2)). erfc by its Chebyshev fit t exp(-y^2 + P(t)), t = 1 / (1 + y / 2): relative error 1.2e-7.
static ALWAYS F gelu_erf(F x) {
  const F y = mul(vabs(x), fset(0.70710678f)), t = div(fset(1.f), fma(y, fset(0.5f), fset(1.f)));
  F p = fset(0.17087277f);
  p = fma(p, t, fset(-0.82215223f));
  p = fma(p, t, fset(1.48851587f));
  p = fma(p, t, fset(-1.13520398f));
  p = fma(p, t, fset(0.27886807f));
  p = fma(p, t, fset(-0.18628806f));
  p = fma(p, t, fset(0.09678418f));
  p = fma(p, t, fset(0.37409196f));
  p = fma(p, t, fset(1.00002368f));
  p = fma(p, t, fset(-1.26551223f));
  const F erfc = mul(t, vexp(sub(p, mul(y, y)))), half = mul(x, fset(0.5f));
  return pick(gt(fzero(), x), mul(half, erfc), mul(half, sub(fset(2.f), erfc)));
}

template <int FN> static ALWAYS F gate_fn(F g) {
  return FN == kSilu ? silu(g) : FN == kGeluTanh ? gelu_tanh(g) : gelu_erf(g);
}

// f(g) u. kClampedSilu: g sigmoid(1.702 g) (u + 1), with g up to 7 and u within -7 and 7 (gpt-oss, arXiv 2508.10925).
template <int FN> static ALWAYS F gated(F g, F u) {
  if (FN != kClampedSilu) return mul(gate_fn<FN>(g), u);
  const F low = keep_nan(g, vmin(g, fset(7.f))), bounded = keep_nan(u, vmax(vmin(u, fset(7.f)), fset(-7.f)));
  return mul(div(low, add(fset(1.f), vexp(mul(low, fset(-1.702f))))), add(bounded, fset(1.f)));
}

static ALWAYS uint16_t half_at(const uint8_t* p) { uint16_t h; __builtin_memcpy(&h, p, 2); return h; }
static ALWAYS void put_half(uint8_t* p, uint16_t h) { __builtin_memcpy(p, &h, 2); }

// One group of 32 values. The largest magnitude is found on the bits, so that infinity and NaN are never lost: such a group
// gets the scale NaN, and all results computed from it are NaN.
static ALWAYS void quantize(F a, F b, Group* out) {
  const I low = iset(0x7fffffff);
  const int top = ihmax(imax(iand(bits(a), low), iand(bits(b), low)));
  float amax, nan = __builtin_nanf("");
  __builtin_memcpy(&amax, &top, 4);
  if (top >= 0x7f800000) {
    for (int i = 0; i < 32; i++) out->q[i] = 0;
    out->d = out->s = out->low = out->high = nan;
    out->i = out->first = 0;
    return;
  }
  // Below 1e-30 the reciprocal could overflow: such a group is zero for all purposes.
  const F inv = fset(amax > 1e-30f ? 127.f / amax : 0.f);
  const float d = amax > 1e-30f ? amax * (1.f / 127.f) : 0.f;
  const I qa = to_int(mul(a, inv)), qb = to_int(mul(b, inv));
  store_i8(out->q, qa);
  store_i8(out->q + 16, qb);
  const int first = ihsum(qa), last = ihsum(qb), sum = first + last;
  out->d = d;
  out->s = d * float(sum);
  out->i = -128 * sum;
  out->first = -128 * first;
  out->low = d * float(first);
  out->high = d * float(last);
}

static ALWAYS Group* group_at(const ActView& act, int row, int g) {
  return act.q + (size_t(row / kTileRows) * act.groups + g) * kTileRows + row % kTileRows;
}

// Values 32 g .. 32 g + 31 of a row; n of them exist (the rest are zero).
static ALWAYS void write32(const ActView& act, int row, int g, F a, F b, int n) {
  if (act.q) quantize(a, b, group_at(act, row, g));
  if (act.f) {
    float* p = act.f + size_t(row) * act.stride + 32 * size_t(g);
    fstore_n(p, a, n);
    if (n > 16) fstore_n(p + 16, b, n - 16);
  }
}

// n values at p, in whole vectors where they are: masked stores cannot be forwarded to the loads that follow.
static ALWAYS F load_up_to(const float* p, int n) { return n >= 16 ? fload(p) : fload_n(p, n); }
static ALWAYS void store_up_to(float* p, F v, int n) {
  if (n >= 16) fstore(p, v);
  else fstore_n(p, v, n);
}

static ALWAYS int imin(int a, int b) { return a < b ? a : b; }
static ALWAYS int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// Calls f(Const<R>) with R == rows, for rows in 1 .. MAX.
template <int N> struct Const { static constexpr int value = N; };
template <int MAX, class Fn> static ALWAYS void with_rows(int rows, Fn f) {
  if constexpr (MAX > 1) {
    if (rows >= MAX) f(Const<MAX>{});
    else with_rows<MAX - 1>(rows, f);
  } else {
    f(Const<1>{});
  }
}

// Panels are read in the order of their addresses, for which memory is fastest. While tiles of rows are computed against one block of
// a panel, they fetch the block behind it, each its share, evenly: in a burst the fetches would wait for each other. A tile that
// is alone fetches a little ahead of itself. A tile of one or two rows only reads, for which the processor fetches ahead itself.
struct Ahead {
  const uint8_t* p;
  unsigned step;
  template <int R> ALWAYS void fetch() {
    if (R <= 2) return;
    prefetch(p);
    p += step;
  }
};
// The share of rows r .. r + m - 1 of `rows`. The block has `bytes` at p, and its tiles call fetch() `calls` times each.
static ALWAYS Ahead share_ahead(const uint8_t* p, unsigned bytes, unsigned calls, unsigned r, unsigned m, unsigned rows) {
  if (m == rows) return {p + 4096, 64};
  return {p + bytes + bytes * r / rows, bytes * m / (calls * rows)};
}

}  // namespace ISA
