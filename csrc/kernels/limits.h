// The machine's limits, for benchmarks: how fast it reads, and how many operations its cores begin.
#pragma once

namespace ISA {

static void read(const void* args, const Ctx& c) {
  const auto& a = *static_cast<const ReadArgs*>(args);
  const size_t per = a.bytes / size_t(c.n) / 1024 * 1024;
  const uint8_t* q = a.p + per * c.tid;
  I x = izero(), y = izero(), z = izero(), w = izero();
  for (size_t i = 0; i < per; i += 256) {
    x = iadd(x, iload(q + i));
    y = iadd(y, iload(q + i + 64));
    z = iadd(z, iload(q + i + 128));
    w = iadd(w, iload(q + i + 192));
  }
  a.sink[8 * c.tid] = uint64_t(ihsum(iadd(iadd(x, y), iadd(z, w))));
}

// N independent chains: few hide no latency, many do not fit the registers. Which is best depends on the instruction set, so
// benchmarks try all and take the fastest.
template <int N> static ALWAYS double dots_s8(int loops, I v, float* sink) {
  I s[N];
  UNROLL for (int i = 0; i < N; i++) s[i] = iadd(v, iset(i));
  for (int l = 0; l < loops; l++) UNROLL for (int i = 0; i < N; i++) s[i] = dot_s8(s[i], v, v);
  UNROLL for (int i = 0; i < N; i++) *sink += float(ihsum(s[i]));
  return double(loops) * N * 128;
}
template <int N> static ALWAYS double dots_u4(int loops, I v, float* sink) {
  I s[N];
  const I w = iand(v, nibble_mask());
  UNROLL for (int i = 0; i < N; i++) s[i] = iadd(v, iset(i));
  for (int l = 0; l < loops; l++) UNROLL for (int i = 0; i < N; i++) s[i] = dot_u4(s[i], w, v);
  UNROLL for (int i = 0; i < N; i++) *sink += float(ihsum(s[i]));
  return double(loops) * N * 128;
}
template <int N> static ALWAYS double fmas(int loops, F u, float* sink) {
  F f[N];
  UNROLL for (int i = 0; i < N; i++) f[i] = add(u, fset(float(i)));
  for (int l = 0; l < loops; l++) UNROLL for (int i = 0; i < N; i++) f[i] = fma(f[i], u, u);
  UNROLL for (int i = 0; i < N; i++) *sink += hsum(f[i]);
  return double(loops) * N * 32;
}
// A chain of additions takes a cycle each on every processor: the clock, as it is while this runs.
static double cycles(int loops) {
#if defined(__x86_64__)
  uint64_t x = 0;
  for (int l = 0; l < loops; l++) UNROLL for (int i = 0; i < 16; i++) __asm__ volatile("add $1, %0" : "+r"(x));
  return double(loops) * 16;
#elif defined(__aarch64__)
  uint64_t x = 0;
  for (int l = 0; l < loops; l++) UNROLL for (int i = 0; i < 16; i++) __asm__ volatile("add %0, %0, #1" : "+r"(x));
  return double(loops) * 16;
#else
  return 0 * loops;
#endif
}
// `what`: 0 int8 dots, 1 float32 FMAs, 2 dots of int4 weights, 3 cycles; plus ten times the number of the variant, 0 to 2.
static double peak(int what, int loops) {
  volatile float seed = 1.0000001f;    // unknown to the compiler, and every lane different
  float start[16], sink = 0;
  for (int i = 0; i < 16; i++) start[i] = seed + float(i) * 1e-6f;
  const F u = fload(start);
  double done = 0;
  switch (what) {
    case 0: done = dots_s8<4>(loops, bits(u), &sink); break;
    case 10: done = dots_s8<6>(loops, bits(u), &sink); break;
    case 20: done = dots_s8<12>(loops, bits(u), &sink); break;
    case 1: done = fmas<4>(loops, u, &sink); break;
    case 11: done = fmas<6>(loops, u, &sink); break;
    case 21: done = fmas<12>(loops, u, &sink); break;
    case 2: done = dots_u4<4>(loops, bits(u), &sink); break;
    case 12: done = dots_u4<6>(loops, bits(u), &sink); break;
    case 22: done = dots_u4<12>(loops, bits(u), &sink); break;
    default: done = cycles(loops);
  }
  seed = sink;
  return done;
}

}  // namespace ISA
