// Prints the best instruction set that this machine has: CMakeLists.txt asks before it compiles that one alone.
#include "processor.h"

#include <cstdio>

int main() { std::fputs(processor_sets().front().c_str(), stdout); }
