// The portable kernels, compiled for ARM processors with the dot product instruction; CMakeLists.txt gives the flags.
#define ISA isa_neon_dotprod
#define ISA_NAME "neon_dotprod"
#include "args.h"
#include "simd/portable.h"
#include "kernels/all.h"
