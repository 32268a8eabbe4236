// How K and V lie in the pool: their elements, the writing of a head, and the finding of the blocks of 16 positions that attention reads.
//
// In 8 bits every head of every token has a scale of its own for K and for V. What is computed with are the stored numbers, widened
// exactly; scales meet scores and weights, 16 positions at a time (attention.h). So a value costs no product of its own.
#pragma once

namespace ISA {

constexpr int kBlocks = kChunk / kRun;

// An element as it is stored.
struct Half { uint16_t bits; };
struct Int8 { int8_t value; };
struct E4M3 { uint8_t bits; };
static ALWAYS F wide(const Half* p) { return load_f16(&p->bits); }
static ALWAYS F wide(const Int8* p) { return load_i8(&p->value); }
static ALWAYS F wide(const E4M3* p) { return load_e4m3(&p->bits); }          // 2^-8 of the number: scales have the rest
template <class E> constexpr int kLine = int(64 / (kRun * sizeof(E)));         // vectors in a line of the cache

static ALWAYS size_t kv_size(const KVView& kv) { return kv.form == kKVHalf ? 2 : 1; }
static ALWAYS uint8_t* k_of(const KVView& kv, int run, int h) {
  return kv.at + size_t(run) * kv.stride + size_t(h) * kv.dim * kRun * kv_size(kv);
}
static ALWAYS uint8_t* v_of(const KVView& kv, int run, int h) { return k_of(kv, run, h) + size_t(kv.heads) * kv.dim * kRun * kv_size(kv); }
// Of K [16], then of V [16]. Only 8-bit forms have any.
static ALWAYS float* scales_of(const KVView& kv, int run, int h) {
  return reinterpret_cast<float*>(kv.at + size_t(run) * kv.stride + 2 * size_t(kv.heads) * kv.dim * kRun) + size_t(h) * 2 * kRun;
}

// ---- writing ------------------------------------------------------------------------------------------------------------
static ALWAYS F to_half_range(F x) { return vmin(vmax(x, fset(-65504.f)), fset(65504.f)); }

// To e4m3, as its byte read as int8: to nearest even, |x| up to 448.
static ALWAYS I e4m3_of(F x) {
  const I u = iand(bits(x), iset(0x7fffffff));
  const I rounded = iadd(u, iadd(iset(0x7ffff), iand(ishr<20>(u), iset(1))));
  const I normal = iadd(ishr<20>(rounded), iset(-(120 << 3))), tiny = to_int(mul(from_bits(u), fset(512.f)));
  const I code = ipick(ge(from_bits(u), fset(1.f / 64)), normal, tiny);
  return iadd(code, ipick(gt(fzero(), x), iset(-128), izero()));
}
// `head` values at x to dim elements, `step` apart: what lies beyond is zero. Returns their scale.
template <bool FLOAT8> static ALWAYS float store_bytes(const float* x, int head, int dim, int8_t* to, size_t step) {
  F top = fzero();
  for (int d = 0; d < dim; d += 16) top = vmax(vabs(to_half_range(load_up_to(x + d, head - d))), top);
  constexpr float kMost = FLOAT8 ? 448.f : 127.f;
  // Below 1e-30 the reciprocal could overflow: such a head is zero for all purposes.
  const float amax = hmax(top), scale = amax > 1e-30f ? amax * (1.f / kMost) : 0.f;
  const F inv = fset(amax > 1e-30f ? kMost / amax : 0.f);
  for (int d = 0; d < dim; d += 16) {
    const F y = mul(to_half_range(load_up_to(x + d, head - d)), inv);
    int8_t t[16];
    store_i8(t, FLOAT8 ? e4m3_of(vmax(vmin(y, fset(kMost)), fset(-kMost))) : to_int(y));
    if (step == 1) __builtin_memcpy(to + d, t, 16);
    else UNROLL for (int i = 0; i < 16; i++) to[size_t(d + i) * step] = t[i];
  }
  return FLOAT8 ? scale * 256.f : scale;
}
template <bool FLOAT8> static void store_head_bytes(const KVView& kv, int slot, int h, const float* k, const float* v) {
  const int run = slot / kRun, lane = slot % kRun;
  float* scales = scales_of(kv, run, h);
  scales[lane] = store_bytes<FLOAT8>(k, kv.head, kv.dim, reinterpret_cast<int8_t*>(k_of(kv, run, h)) + lane, kRun);
  scales[kRun + lane] = store_bytes<FLOAT8>(v, kv.head, kv.dim, reinterpret_cast<int8_t*>(v_of(kv, run, h)) + size_t(lane) * kv.dim, 1);
}
// K and V of one head of a token; infinities become the largest half, so nothing that is stored is not a number.
static ALWAYS void store_head(const KVView& kv, int slot, int h, const float* k, const float* v) {
  if (kv.form == kKVInt8) return store_head_bytes<false>(kv, slot, h, k, v);
  if (kv.form == kKVE4M3) return store_head_bytes<true>(kv, slot, h, k, v);
  uint16_t *to_k = reinterpret_cast<uint16_t*>(k_of(kv, slot / kRun, h)) + slot % kRun;
  uint16_t* to_v = reinterpret_cast<uint16_t*>(v_of(kv, slot / kRun, h)) + size_t(slot % kRun) * kv.dim;
  for (int d = 0; d < kv.dim; d += 16) {
    alignas(64) uint16_t t[16];
    store_f16(t, to_half_range(load_up_to(k + d, kv.head - d)));
    UNROLL for (int i = 0; i < 16; i++) to_k[size_t(d + i) * kRun] = t[i];
    store_f16(to_v + d, to_half_range(load_up_to(v + d, kv.head - d)));
  }
}

// ---- finding ------------------------------------------------------------------------------------------------------------
// Where the blocks of a chunk lie, and memory to collect those that lie in several runs.
struct Blocks {
  const uint8_t *k[kBlocks], *v[kBlocks];
  const float* scales[kBlocks];
  uint8_t *k_room, *v_room;            // [kBlocks][16 * dim] elements each
  float* scale_room;                   // [kBlocks][2 * 16]
};

// Collects a block whose positions lie in several runs: lanes of K are blended by mask, rows of V copied.
template <class T> static void gather_block(const KVView& kv, const int* slots, int lo, int hi, int h, uint8_t* kb, uint8_t* vb) {
  constexpr int kWords = kRun * sizeof(T) / 8;
  const int dim = kv.dim;
  unsigned done = 0;
  for (int j = lo; j < hi; j++) {
    const int slot = clamp(slots[j], 0, kv.num_runs * kRun - 1), run = slot / kRun;
    const uint8_t* k = k_of(kv, run, h);
    __builtin_memcpy(vb + size_t(j) * dim * sizeof(T), v_of(kv, run, h) + size_t(slot % kRun) * dim * sizeof(T), size_t(dim) * sizeof(T));
    if (done >> j & 1) continue;
    if (slot % kRun != j) {            // never so with the allocator's guarantee, but correct anyway
      for (int d = 0; d < dim; d++) __builtin_memcpy(kb + (size_t(d) * kRun + j) * sizeof(T), k + (size_t(d) * kRun + slot % kRun) * sizeof(T), sizeof(T));
      continue;
    }
    T m[kRun];
    for (int l = 0; l < kRun; l++) {
      const bool same = l >= j && l < hi && slots[l] == run * kRun + l;
      m[l] = same ? T(~T(0)) : T(0);
      done |= unsigned(same) << l;
    }
    uint64_t mask[kWords];
    __builtin_memcpy(mask, m, sizeof(mask));
    for (int d = 0; d < dim; d++) {
      uint64_t x[kWords], y[kWords];
      __builtin_memcpy(x, kb + size_t(d) * sizeof(mask), sizeof(mask));
      __builtin_memcpy(y, k + size_t(d) * sizeof(mask), sizeof(mask));
      for (int i = 0; i < kWords; i++) x[i] = (x[i] & ~mask[i]) | (y[i] & mask[i]);
      __builtin_memcpy(kb + size_t(d) * sizeof(mask), x, sizeof(mask));
    }
  }
}
static void gather_scales(const KVView& kv, const int* slots, int lo, int hi, int h, float* to) {
  for (int j = lo; j < hi; j++) {
    const int slot = clamp(slots[j], 0, kv.num_runs * kRun - 1);
    const float* from = scales_of(kv, slot / kRun, h) + slot % kRun;
    to[j] = from[0], to[kRun + j] = from[kRun];
  }
}

// Finds K and V of the blocks of positions [lo, hi) of the chunk that starts at `base`; only those positions need valid slots.
static void find_blocks(const KVView& kv, const int* table, int base, int lo, int hi, int h, Blocks& at) {
  const bool bytes = kv.form != kKVHalf;
  for (int b = (lo - base) / kRun; b * kRun < hi - base; b++) {
    const int p0 = base + b * kRun, j0 = lo > p0 ? lo - p0 : 0, j1 = imin(kRun, hi - p0);
    const int* slots = table + p0;
    const int run = slots[j0] / kRun, first = run * kRun;
    int diff = 0;
    if (j0 == 0 && j1 == kRun) {
      for (int j = 0; j < kRun; j++) diff |= slots[j] ^ (first + j);
    } else {
      for (int j = j0; j < j1; j++) diff |= slots[j] ^ (first + j);
    }
    if (diff == 0 && unsigned(run) < unsigned(kv.num_runs)) {
      at.k[b] = k_of(kv, run, h);
      at.v[b] = v_of(kv, run, h);
      at.scales[b] = bytes ? scales_of(kv, run, h) : nullptr;
      continue;
    }
    const size_t block = size_t(kRun) * kv.dim * kv_size(kv);
    uint8_t *kb = at.k_room + b * block, *vb = at.v_room + b * block;
    if (bytes) gather_block<uint8_t>(kv, slots, j0, j1, h, kb, vb);
    else gather_block<uint16_t>(kv, slots, j0, j1, h, kb, vb);
    float* scales = at.scale_room + b * 2 * kRun;
    if (bytes) gather_scales(kv, slots, j0, j1, h, scales);
    at.k[b] = kb, at.v[b] = vb, at.scales[b] = scales;
  }
}

}  // namespace ISA
