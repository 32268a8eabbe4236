// Sixteen lanes on AVX-512 with VNNI.
#pragma once
#include <immintrin.h>

namespace ISA {

using F = __m512;                      // 16 floats
using I = __m512i;                     // 16 int32, or 64 bytes
using M = __mmask16;

// Sizes of the register tiles.
constexpr int kMR = 12, kFR = 12;      // rows: int8 ones, and those of floats
constexpr int kUnpackRows = 0x7fffffff;          // with more rows, a panel is unpacked before: never, it is cheap beside twelve rows
constexpr int kAttR = 6, kAttP = 4;    // attention: rows times blocks of 16 positions
// Weights of int8 panels are stored with 128 added; the dot instruction wants them so.
constexpr bool kBiased = true;

static ALWAYS F fload(const float* p) { return _mm512_loadu_ps(p); }
static ALWAYS void fstore(float* p, F v) { _mm512_storeu_ps(p, v); }
static ALWAYS F fset(float x) { return _mm512_set1_ps(x); }
static ALWAYS F fzero() { return _mm512_setzero_ps(); }
static ALWAYS F add(F a, F b) { return _mm512_add_ps(a, b); }
static ALWAYS F sub(F a, F b) { return _mm512_sub_ps(a, b); }
static ALWAYS F mul(F a, F b) { return _mm512_mul_ps(a, b); }
static ALWAYS F div(F a, F b) { return _mm512_div_ps(a, b); }
static ALWAYS F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }     // a * b + c
static ALWAYS F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }   // c - a * b
static ALWAYS F vmax(F a, F b) { return _mm512_max_ps(a, b); }
static ALWAYS F vmin(F a, F b) { return _mm512_min_ps(a, b); }
static ALWAYS F vround(F a) { return _mm512_roundscale_ps(a, 8); }          // to nearest even
static ALWAYS F scale2(F p, F n) { return _mm512_scalef_ps(p, n); }         // p * 2^n for whole n
static ALWAYS I to_int(F a) { return _mm512_cvtps_epi32(a); }               // to nearest even
static ALWAYS F to_float(I a) { return _mm512_cvtepi32_ps(a); }
static ALWAYS I bits(F a) { return _mm512_castps_si512(a); }
static ALWAYS F from_bits(I a) { return _mm512_castsi512_ps(a); }

static ALWAYS M first(int n) { return n >= 16 ? M(0xffff) : n <= 0 ? M(0) : M((1u << n) - 1); }
static ALWAYS M mand(M a, M b) { return M(a & b); }
static ALWAYS M mnot(M a) { return M(~a); }
static ALWAYS M gt(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static ALWAYS M ge(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static ALWAYS M is_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
static ALWAYS unsigned mask_bits(M m) { return m; }
static ALWAYS M from_mask_bits(unsigned b) { return M(b); }
static ALWAYS F pick(M m, F yes, F no) { return _mm512_mask_mov_ps(no, m, yes); }
static ALWAYS I ipick(M m, I yes, I no) { return _mm512_mask_mov_epi32(no, m, yes); }
static ALWAYS F fload_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }   // 0 beyond n
static ALWAYS void fstore_n(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }

static ALWAYS I izero() { return _mm512_setzero_si512(); }
static ALWAYS I iset(int x) { return _mm512_set1_epi32(x); }
static ALWAYS I iload(const void* p) { return _mm512_loadu_si512(p); }
static ALWAYS void istore(void* p, I v) { _mm512_storeu_si512(p, v); }
static ALWAYS I load_i8(const uint8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }   // sixteen signed bytes
static ALWAYS I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
static ALWAYS I imul(I a, I b) { return _mm512_mullo_epi32(a, b); }
static ALWAYS I imax(I a, I b) { return _mm512_max_epi32(a, b); }
static ALWAYS I iand(I a, I b) { return _mm512_and_si512(a, b); }
template <int N> static ALWAYS I ishl(I a) { return _mm512_slli_epi32(a, N); }
template <int N> static ALWAYS I ishr(I a) { return _mm512_srli_epi32(a, N); }
static ALWAYS I nibble_mask() { return _mm512_set1_epi8(15); }
// A table of 16 bytes, and what it has at the place that each byte (0..15) of v names.
static ALWAYS I table16(const uint8_t* t) { return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t))); }
static ALWAYS I look_up(I table, I v) { return _mm512_shuffle_epi8(table, v); }
static ALWAYS void store_i8(int8_t* p, I v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }

// Four products of bytes added to each int32 lane, exactly. Weights w: 0..15 (dot_u4) or as prepared by prep_s8 (dot_s8). Eight
// steps of dot_u4 from zero, not more, end with sum_u4.
static ALWAYS I dot_u4(I acc, I w, I x) { return _mm512_dpbusd_epi32(acc, w, x); }
static ALWAYS I sum_u4(I acc) { return acc; }
static ALWAYS I prep_s8(I w) { return w; }
static ALWAYS I dot_s8(I acc, I w, I x) { return _mm512_dpbusd_epi32(acc, w, x); }
// The same with the four bytes at x. The instruction spreads them itself, which the compiler does not know.
static ALWAYS I dot_s8_at(I acc, I w, const int8_t* x) {
  struct Four { int8_t v[4]; };
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*reinterpret_cast<const Four*>(x)));
  return acc;
}
static ALWAYS I dot_u4_at(I acc, I w, const int8_t* x) { return dot_s8_at(acc, w, x); }

static ALWAYS F load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Bytes widened exactly: int8, and e4m3 times 2^-8 (its bits are those of a half whose exponent is 8 less).
static ALWAYS F load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static ALWAYS F load_e4m3(const uint8_t* p) {
  const __m256i x = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 7);
  return _mm512_cvtph_ps(_mm256_and_si256(x, _mm256_set1_epi16(short(0xbfff))));
}
static ALWAYS void store_f16(uint16_t* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static ALWAYS float f16_to_f32(uint16_t h) { return _cvtsh_ss(h); }
static ALWAYS uint16_t f32_to_f16(float x) { return uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
static ALWAYS void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// Reductions are one fixed tree on every instruction set: halves are folded onto each other.
static ALWAYS float hsum(F a) {
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
static ALWAYS float hmax(F a) { return _mm512_reduce_max_ps(a); }
static ALWAYS int ihsum(I a) {  // wraps, as iadd does
  const __m256i b = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti32x8_epi32(a, 1));
  const __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  const __m128i d = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(d, _mm_shuffle_epi32(d, 0xb1)));
}
static ALWAYS int ihmax(I a) { return _mm512_reduce_max_epi32(a); }

}  // namespace ISA
