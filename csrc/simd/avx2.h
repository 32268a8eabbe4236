// Sixteen lanes on AVX2 with FMA and F16C: every vector is a pair of 256-bit registers.
#pragma once
#include <immintrin.h>

namespace ISA {

struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct M { __m256 a, b; };             // all ones where true

constexpr int kMR = 3, kFR = 6;
constexpr int kUnpackRows = 24;
constexpr int kAttR = 3, kAttP = 2;
constexpr bool kBiased = false;

#define BOTH(T, op) T{op(x.a, y.a), op(x.b, y.b)}
static ALWAYS F fload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static ALWAYS void fstore(float* p, F v) { _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b); }
static ALWAYS F fset(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
static ALWAYS F fzero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static ALWAYS F add(F x, F y) { return BOTH(F, _mm256_add_ps); }
static ALWAYS F sub(F x, F y) { return BOTH(F, _mm256_sub_ps); }
static ALWAYS F mul(F x, F y) { return BOTH(F, _mm256_mul_ps); }
static ALWAYS F div(F x, F y) { return BOTH(F, _mm256_div_ps); }
static ALWAYS F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static ALWAYS F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
static ALWAYS F vmax(F x, F y) { return BOTH(F, _mm256_max_ps); }
static ALWAYS F vmin(F x, F y) { return BOTH(F, _mm256_min_ps); }
static ALWAYS F vround(F x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
static ALWAYS I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static ALWAYS F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static ALWAYS I bits(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
static ALWAYS F from_bits(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }

// 2^n in two factors, so that results below the smallest normal number are rounded once, as scalef does.
static ALWAYS __m256 scale2_half(__m256 p, __m256 n) {
  const __m256i k = _mm256_cvtps_epi32(n), h = _mm256_srai_epi32(k, 1), r = _mm256_sub_epi32(k, h), one = _mm256_set1_epi32(127);
  const __m256 f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(h, one), 23));
  const __m256 g = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(r, one), 23));
  return _mm256_mul_ps(_mm256_mul_ps(p, f), g);
}
static ALWAYS F scale2(F p, F n) { return {scale2_half(p.a, n.a), scale2_half(p.b, n.b)}; }

static ALWAYS M from_mask_bits(unsigned m) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i a = _mm256_and_si256(_mm256_set1_epi32(int(m)), lane), b = _mm256_and_si256(_mm256_set1_epi32(int(m >> 8)), lane);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, lane)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(b, lane))};
}
static ALWAYS unsigned mask_bits(M m) { return unsigned(_mm256_movemask_ps(m.a)) | unsigned(_mm256_movemask_ps(m.b)) << 8; }
static ALWAYS M first(int n) { return from_mask_bits(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1); }
static ALWAYS M mand(M x, M y) { return BOTH(M, _mm256_and_ps); }
static ALWAYS M mnot(M x) {
  const __m256 o = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  return {_mm256_xor_ps(x.a, o), _mm256_xor_ps(x.b, o)};
}
static ALWAYS M gt(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)}; }
static ALWAYS M ge(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)}; }
static ALWAYS M is_nan(F x) { return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)}; }
static ALWAYS F pick(M m, F yes, F no) { return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)}; }
static ALWAYS I ipick(M m, I yes, I no) { return bits(pick(m, from_bits(yes), from_bits(no))); }
static ALWAYS F fload_n(const float* p, int n) {
  const M m = first(n);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.a)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.b))};
}
static ALWAYS void fstore_n(float* p, F v, int n) {
  const M m = first(n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.a), v.a);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.b), v.b);
}

static ALWAYS I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static ALWAYS I iset(int x) { const __m256i v = _mm256_set1_epi32(x); return {v, v}; }
static ALWAYS I iload(const void* p) {
  auto q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
static ALWAYS I load_i8(const uint8_t* p) {
  auto q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(q)), _mm256_cvtepi8_epi32(_mm_loadu_si64(p + 8))};
}
static ALWAYS void istore(void* p, I v) {
  auto q = static_cast<__m256i*>(p);
  _mm256_storeu_si256(q, v.a), _mm256_storeu_si256(q + 1, v.b);
}
static ALWAYS I iadd(I x, I y) { return BOTH(I, _mm256_add_epi32); }
static ALWAYS I imul(I x, I y) { return BOTH(I, _mm256_mullo_epi32); }
static ALWAYS I imax(I x, I y) { return BOTH(I, _mm256_max_epi32); }
static ALWAYS I iand(I x, I y) { return BOTH(I, _mm256_and_si256); }
template <int N> static ALWAYS I ishl(I x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
template <int N> static ALWAYS I ishr(I x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
static ALWAYS I nibble_mask() { const __m256i v = _mm256_set1_epi8(15); return {v, v}; }
static ALWAYS I table16(const uint8_t* t) {
  const __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)));
  return {v, v};
}
static ALWAYS I look_up(I table, I v) { return {_mm256_shuffle_epi8(table.a, v.a), _mm256_shuffle_epi8(table.b, v.b)}; }
static ALWAYS void store_i8(int8_t* p, I v) {
  const __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}

// vpmaddubsw adds two products of unsigned by signed bytes and saturates at 32767: 15 * 127 * 2 and 128 * 127 * 2 fit.
static ALWAYS __m256i dot_half(__m256i acc, __m256i u, __m256i s) {
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
  __asm__("" : "+x"(acc));             // or the compiler adds in an order that takes more registers than there are
  return acc;
}
// For weights up to 15 even eight such sums fit (8 * 15 * 127 * 2 = 30480): they are widened once, at the end.
static ALWAYS I dot_u4(I acc, I w, I x) {
  acc = {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, x.a)), _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, x.b))};
  __asm__("" : "+x"(acc.a), "+x"(acc.b));
  return acc;
}
static ALWAYS I sum_u4(I acc) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(acc.a, one), _mm256_madd_epi16(acc.b, one)};
}
static ALWAYS I prep_s8(I w) {
  const __m256i s = _mm256_set1_epi8(char(0x80));
  return {_mm256_xor_si256(w.a, s), _mm256_xor_si256(w.b, s)};
}
static ALWAYS I dot_s8(I acc, I w, I x) {
  return {dot_half(acc.a, _mm256_abs_epi8(w.a), _mm256_sign_epi8(x.a, w.a)),
          dot_half(acc.b, _mm256_abs_epi8(w.b), _mm256_sign_epi8(x.b, w.b))};
}

static ALWAYS I iset_at(const int8_t* four) {
  int x;
  __builtin_memcpy(&x, four, 4);
  return iset(x);
}
static ALWAYS I dot_u4_at(I acc, I w, const int8_t* x) { return dot_u4(acc, w, iset_at(x)); }
static ALWAYS I dot_s8_at(I acc, I w, const int8_t* x) { return dot_s8(acc, w, iset_at(x)); }

static ALWAYS F load_f16(const uint16_t* p) {
  auto q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
// Bytes widened exactly: int8, and e4m3 times 2^-8 (its bits are those of a half whose exponent is 8 less).
static ALWAYS F load_i8(const int8_t* p) {
  auto half = [](const int8_t* q) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q)))); };
  return {half(p), half(p + 8)};
}
static ALWAYS F load_e4m3(const uint8_t* p) {
  const __m256i x = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 7);
  const __m256i h = _mm256_and_si256(x, _mm256_set1_epi16(short(0xbfff)));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}
static ALWAYS void store_f16(uint16_t* p, F v) {
  auto q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
}
static ALWAYS float f16_to_f32(uint16_t h) { return _cvtsh_ss(h); }
static ALWAYS uint16_t f32_to_f16(float x) { return uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT)); }
static ALWAYS void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

static ALWAYS float hsum(F x) {
  const __m256 b = _mm256_add_ps(x.a, x.b);
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
static ALWAYS float hmax(F x) {
  const __m256 b = _mm256_max_ps(x.a, x.b);
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
static ALWAYS int ihsum(I x) {
  const __m256i b = _mm256_add_epi32(x.a, x.b);
  const __m128i c = _mm_add_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  const __m128i d = _mm_add_epi32(c, _mm_shuffle_epi32(c, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(d, _mm_shuffle_epi32(d, 0xb1)));
}
static ALWAYS int ihmax(I x) {
  const __m256i b = _mm256_max_epi32(x.a, x.b);
  const __m128i c = _mm_max_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  const __m128i d = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(d, _mm_shuffle_epi32(d, 0xb1)));
}
#undef BOTH

}  // namespace ISA
