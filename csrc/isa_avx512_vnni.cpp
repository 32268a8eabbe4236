// The kernels for avx512_vnni; CMakeLists.txt gives this file its compiler flags.
#define ISA isa_avx512_vnni
#define ISA_NAME "avx512_vnni"
#include "args.h"
#include "simd/avx512.h"
#include "kernels/all.h"
