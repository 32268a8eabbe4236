// What the processor can do. The only place that asks.
#pragma once
#include <string>
#include <vector>
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

// The instruction sets of ours that it has, best first.
inline std::vector<std::string> processor_sets() {
  std::vector<std::string> sets;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
    sets.push_back("avx512_vnni");
  if (avx2) sets.push_back("avx2");    // every processor with AVX2 has F16C
#elif defined(__aarch64__) && defined(__linux__)
  if (getauxval(AT_HWCAP) & (1ul << 20)) sets.push_back("neon_dotprod");     // HWCAP_ASIMDDP
#elif defined(__aarch64__)
  sets.push_back("neon_dotprod");      // every Apple processor
#endif
  sets.push_back("portable");
  return sets;
}
