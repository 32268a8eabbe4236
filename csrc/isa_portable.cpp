// The kernels for portable; CMakeLists.txt gives this file its compiler flags.
#define ISA isa_portable
#define ISA_NAME "portable"
#include "args.h"
#include "simd/portable.h"
#include "kernels/all.h"
