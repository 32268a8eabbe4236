// Sixteen lanes in plain C++: four vectors of four in the vector extensions of GCC and Clang, which become SSE2, NEON or
// whatever the compiler's target has.
#pragma once
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace ISA {

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef uint32_t u4 __attribute__((vector_size(16)));
struct F { f4 v[4]; };
struct I { i4 v[4]; };
struct M { i4 v[4]; };                 // all ones where true

#if defined(__aarch64__)
constexpr int kMR = 3, kFR = 4;        // 32 registers of 128 bits
#else
constexpr int kMR = 2, kFR = 2;
#endif
constexpr int kUnpackRows = 24;
constexpr int kAttR = 3, kAttP = 1;
constexpr bool kBiased = false;

#define EACH for (int l = 0; l < 4; l++)
static ALWAYS F fload(const float* p) { F r; __builtin_memcpy(&r, p, 64); return r; }
static ALWAYS void fstore(float* p, F v) { __builtin_memcpy(p, &v, 64); }
static ALWAYS F fset(float x) { F r; EACH r.v[l] = f4{x, x, x, x}; return r; }
static ALWAYS F fzero() { return fset(0.f); }
static ALWAYS F add(F a, F b) { EACH a.v[l] += b.v[l]; return a; }
static ALWAYS F sub(F a, F b) { EACH a.v[l] -= b.v[l]; return a; }
static ALWAYS F mul(F a, F b) { EACH a.v[l] *= b.v[l]; return a; }
static ALWAYS F div(F a, F b) { EACH a.v[l] /= b.v[l]; return a; }
#if defined(__aarch64__)
static ALWAYS F fma(F a, F b, F c) { EACH c.v[l] = f4(vfmaq_f32(float32x4_t(c.v[l]), float32x4_t(a.v[l]), float32x4_t(b.v[l]))); return c; }
static ALWAYS F fnma(F a, F b, F c) { EACH c.v[l] = f4(vfmsq_f32(float32x4_t(c.v[l]), float32x4_t(a.v[l]), float32x4_t(b.v[l]))); return c; }
#else
static ALWAYS F fma(F a, F b, F c) { return add(mul(a, b), c); }
static ALWAYS F fnma(F a, F b, F c) { return sub(c, mul(a, b)); }
#endif
static ALWAYS I bits(F a) { I r; __builtin_memcpy(&r, &a, 64); return r; }
static ALWAYS F from_bits(I a) { F r; __builtin_memcpy(&r, &a, 64); return r; }
static ALWAYS F pick(M m, F yes, F no) {
  I y = bits(yes), n = bits(no);
  EACH n.v[l] = (y.v[l] & m.v[l]) | (n.v[l] & ~m.v[l]);
  return from_bits(n);
}
static ALWAYS I ipick(M m, I yes, I no) { EACH no.v[l] = (yes.v[l] & m.v[l]) | (no.v[l] & ~m.v[l]); return no; }
static ALWAYS M gt(F a, F b) { M r; EACH r.v[l] = i4(a.v[l] > b.v[l]); return r; }
static ALWAYS M ge(F a, F b) { M r; EACH r.v[l] = i4(a.v[l] >= b.v[l]); return r; }
static ALWAYS M is_nan(F a) { M r; EACH r.v[l] = i4(a.v[l] != a.v[l]); return r; }
static ALWAYS F vmax(F a, F b) { return pick(gt(a, b), a, b); }   // b where a is NaN, like the x86 instruction
static ALWAYS F vmin(F a, F b) { return pick(gt(b, a), a, b); }
static ALWAYS I to_int(F a) {          // to nearest even, for |a| < 2^22: the sum leaves the whole number in the mantissa
  I r;
  EACH {
    const f4 magic = f4{12582912.f, 12582912.f, 12582912.f, 12582912.f};
    i4 k;
    const f4 t = a.v[l] + magic;
    __builtin_memcpy(&k, &t, 16);
    r.v[l] = k - i4{0x4b400000, 0x4b400000, 0x4b400000, 0x4b400000};
  }
  return r;
}
static ALWAYS F to_float(I a) { F r; EACH r.v[l] = __builtin_convertvector(a.v[l], f4); return r; }
static ALWAYS F vround(F a) { return to_float(to_int(a)); }
static ALWAYS F scale2(F p, F n) {
  const I k = to_int(n);
  I f, g;
  EACH { f.v[l] = ((k.v[l] >> 1) + 127) << 23; g.v[l] = (k.v[l] - (k.v[l] >> 1) + 127) << 23; }
  return mul(mul(p, from_bits(f)), from_bits(g));
}
static ALWAYS M from_mask_bits(unsigned m) {
  M r;
  EACH { const i4 b = i4{1, 2, 4, 8} << (4 * l); r.v[l] = i4((i4{int(m), int(m), int(m), int(m)} & b) == b); }
  return r;
}
static ALWAYS unsigned mask_bits(M m) {
  unsigned r = 0;
  for (int i = 0; i < 16; i++) r |= (unsigned(m.v[i / 4][i % 4]) & 1u) << i;
  return r;
}
static ALWAYS M first(int n) { return from_mask_bits(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1); }
static ALWAYS M mand(M a, M b) { EACH a.v[l] &= b.v[l]; return a; }
static ALWAYS M mnot(M a) { EACH a.v[l] = ~a.v[l]; return a; }
static ALWAYS F fload_n(const float* p, int n) {
  if (n >= 16) return fload(p);
  F r = fzero();
  if (n > 0) __builtin_memcpy(&r, p, size_t(n) * 4);
  return r;
}
static ALWAYS void fstore_n(float* p, F v, int n) { if (n > 0) __builtin_memcpy(p, &v, size_t(n < 16 ? n : 16) * 4); }

static ALWAYS I iset(int x) { I r; EACH r.v[l] = i4{x, x, x, x}; return r; }
static ALWAYS I izero() { return iset(0); }
static ALWAYS I iload(const void* p) { I r; __builtin_memcpy(&r, p, 64); return r; }
static ALWAYS void istore(void* p, I v) { __builtin_memcpy(p, &v, 64); }
static ALWAYS I load_i8(const uint8_t* p) {
  I r;
  for (int i = 0; i < 16; i++) r.v[i / 4][i % 4] = int8_t(p[i]);
  return r;
}
// As the instructions of the other sets they wrap around, which four bytes in one number count on (kernels/small.h).
static ALWAYS I iadd(I a, I b) { EACH a.v[l] = i4(u4(a.v[l]) + u4(b.v[l])); return a; }
static ALWAYS I imul(I a, I b) { EACH a.v[l] = i4(u4(a.v[l]) * u4(b.v[l])); return a; }
static ALWAYS I imax(I a, I b) { M m; EACH m.v[l] = i4(a.v[l] > b.v[l]); return ipick(m, a, b); }
static ALWAYS I iand(I a, I b) { EACH a.v[l] &= b.v[l]; return a; }
template <int N> static ALWAYS I ishl(I a) { EACH a.v[l] = i4(u4(a.v[l]) << N); return a; }
template <int N> static ALWAYS I ishr(I a) { EACH a.v[l] = i4(u4(a.v[l]) >> N); return a; }
static ALWAYS I nibble_mask() { return iset(0x0f0f0f0f); }
static ALWAYS I table16(const uint8_t* t) { I r; EACH __builtin_memcpy(&r.v[l], t, 16); return r; }
#if defined(__ARM_FEATURE_DOTPROD)
static ALWAYS I look_up(I table, I v) { EACH v.v[l] = i4(vqtbl1q_u8(uint8x16_t(table.v[l]), uint8x16_t(v.v[l]))); return v; }
#else
static ALWAYS I look_up(I table, I v) {
  uint8_t t[64], at[64];
  __builtin_memcpy(t, &table, 64);
  __builtin_memcpy(at, &v, 64);
  for (int i = 0; i < 64; i++) at[i] = t[at[i]];
  __builtin_memcpy(&v, at, 64);
  return v;
}
#endif
static ALWAYS void store_i8(int8_t* p, I v) { for (int i = 0; i < 16; i++) p[i] = int8_t(v.v[i / 4][i % 4]); }

#if defined(__ARM_FEATURE_DOTPROD)
static ALWAYS I dot_s8(I acc, I w, I x) {
  EACH acc.v[l] = i4(vdotq_s32(int32x4_t(acc.v[l]), int8x16_t(w.v[l]), int8x16_t(x.v[l])));
  return acc;
}
#else
// The four bytes of a lane, sign-extended, times those of the other: shifts and 32-bit products, which all targets have.
static ALWAYS I dot_s8(I acc, I w, I x) {
  typedef int16_t h8 __attribute__((vector_size(16)));
  EACH {
    const h8 a = h8(w.v[l]), b = h8(x.v[l]);
    const h8 even = ((a << 8) >> 8) * ((b << 8) >> 8);   // at most 128 * 127: fits 16 bits
    const h8 odd = (a >> 8) * (b >> 8);
    const i4 e = i4(even), o = i4(odd);
    acc.v[l] += ((e << 16) >> 16) + (e >> 16) + ((o << 16) >> 16) + (o >> 16);
  }
  return acc;
}
#endif
static ALWAYS I dot_u4(I acc, I w, I x) { return dot_s8(acc, w, x); }
static ALWAYS I sum_u4(I acc) { return acc; }
static ALWAYS I prep_s8(I w) {
  EACH w.v[l] ^= i4{int(0x80808080), int(0x80808080), int(0x80808080), int(0x80808080)};
  return w;
}

static ALWAYS I iset_at(const int8_t* four) {
  int x;
  __builtin_memcpy(&x, four, 4);
  return iset(x);
}
static ALWAYS I dot_u4_at(I acc, I w, const int8_t* x) { return dot_u4(acc, w, iset_at(x)); }
static ALWAYS I dot_s8_at(I acc, I w, const int8_t* x) { return dot_s8(acc, w, iset_at(x)); }

// Half precision in integer steps (no instruction for it on plain x86-64). Subnormal halves are kept exactly.
static ALWAYS float f16_to_f32(uint16_t h) {
#if defined(__aarch64__)
  __fp16 x;
  __builtin_memcpy(&x, &h, 2);
  return float(x);
#else
  const uint32_t sign = uint32_t(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
  uint32_t r;
  float f;
  if (e == 0) {
    f = float(int(m)) * 5.9604644775390625e-8f;
    __builtin_memcpy(&r, &f, 4);
    r |= sign;
  } else {
    r = sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13;
  }
  __builtin_memcpy(&f, &r, 4);
  return f;
#endif
}
static ALWAYS uint16_t f32_to_f16(float x) {
#if defined(__aarch64__)
  const __fp16 y = __fp16(x);
  uint16_t h;
  __builtin_memcpy(&h, &y, 2);
  return h;
#else
  uint32_t b;
  __builtin_memcpy(&b, &x, 4);
  const uint32_t sign = (b >> 16) & 0x8000, a = b & 0x7fffffff;
  if (a > 0x7f800000u) return uint16_t(sign | 0x7e00);
  if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00);
  if (a < 0x38800000u) {               // below the smallest normal half: count steps of 2^-24
    float f;
    __builtin_memcpy(&f, &a, 4);
    f = f * 16777216.f + 12582912.f;
    uint32_t k;
    __builtin_memcpy(&k, &f, 4);
    return uint16_t(sign | (k & 0x7ff));
  }
  const uint32_t r = a + 0xfffu + ((a >> 13) & 1);
  return uint16_t(sign | ((r >> 13) - (112u << 10)));
#endif
}
static ALWAYS F load_f16(const uint16_t* p) {
  F r;
#if defined(__aarch64__)
  for (int l = 0; l < 4; l++) r.v[l] = f4(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * l))));
#else
  typedef uint16_t h4 __attribute__((vector_size(8)));
  for (int l = 0; l < 4; l++) {
    h4 h;
    __builtin_memcpy(&h, p + 4 * l, 8);
    const u4 x = __builtin_convertvector(h, u4), a = x & 0x7fff;
    const u4 normal = (a << 13) + ((112u << 23) + ((u4(a >= 0x7c00) & (112u << 23))));   // infinity and NaN keep their exponent
    const u4 tiny = u4(__builtin_convertvector(i4(a), f4) * 5.9604644775390625e-8f);
    const u4 is_tiny = u4(a < 0x400);
    r.v[l] = f4((x & 0x8000) << 16 | (tiny & is_tiny) | (normal & ~is_tiny));
  }
#endif
  return r;
}
// Bytes widened exactly: int8, and e4m3 times 2^-8 (its bits are those of a half whose exponent is 8 less).
static ALWAYS F load_i8(const int8_t* p) {
  typedef int8_t b4 __attribute__((vector_size(4)));
  F r;
  for (int l = 0; l < 4; l++) {
    b4 x;
    __builtin_memcpy(&x, p + 4 * l, 4);
    r.v[l] = __builtin_convertvector(__builtin_convertvector(x, i4), f4);
  }
  return r;
}
static ALWAYS F load_e4m3(const uint8_t* p) {
  uint16_t h[16];
  for (int i = 0; i < 16; i++) h[i] = uint16_t((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7);
  return load_f16(h);
}
static ALWAYS void store_f16(uint16_t* p, F v) { for (int i = 0; i < 16; i++) p[i] = f32_to_f16(v.v[i / 4][i % 4]); }
static ALWAYS void prefetch(const void* p) { __builtin_prefetch(p); }

static ALWAYS float hsum(F a) {
  const f4 c = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (c[0] + c[2]) + (c[1] + c[3]);
}
static ALWAYS float hmax(F a) {
  float m = a.v[0][0];
  for (int i = 1; i < 16; i++) m = a.v[i / 4][i % 4] > m ? a.v[i / 4][i % 4] : m;
  return m;
}
static ALWAYS int ihsum(I a) {  // wraps, as iadd does
  const u4 c = u4(a.v[0]) + u4(a.v[1]) + u4(a.v[2]) + u4(a.v[3]);
  return int(c[0] + c[1] + c[2] + c[3]);
}
static ALWAYS int ihmax(I a) {
  int m = a.v[0][0];
  for (int i = 1; i < 16; i++) m = a.v[i / 4][i % 4] > m ? a.v[i / 4][i % 4] : m;
  return m;
}
#undef EACH

}  // namespace ISA
