// The kernels for avx2; CMakeLists.txt gives this file its compiler flags.
#define ISA isa_avx2
#define ISA_NAME "avx2"
#include "args.h"
#include "simd/avx2.h"
#include "kernels/all.h"
