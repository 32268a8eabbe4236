// A kernel for the thread pool: a function and a block of plain arguments, run by all threads at once.
//
// This header is compiled once per instruction set, so it must not contain anything the linker could merge between them:
// only plain structs, templates of the instruction set's own types, and functions that are always inlined.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#define ALWAYS inline __attribute__((always_inline))

constexpr size_t kScratchBytes = size_t(4) << 20;   // private to each thread
constexpr int kMaxThreads = 256;

// A thread's view of the op it is running. Work is shared by `take`: a counter that hands out units 0, 1, 2, ... in the order of
// the calls, so a thread whose core is busy elsewhere simply takes fewer.
struct Ctx {
  int tid;                             // 0 .. n-1
  int n;                               // threads that run this op; may differ from op to op
  int size;                            // threads of the pool: for choices that two ops must make alike
  std::atomic<int>* next;
  char* scratch;                       // kScratchBytes, 64-byte aligned
  ALWAYS int take() const { return next->fetch_add(1, std::memory_order_relaxed); }
};

using OpFn = void (*)(const void* args, const Ctx&);

constexpr size_t kOpArgs = 256;

struct Op {
  OpFn fn;
  const char* name;
  alignas(16) unsigned char args[kOpArgs];
};

template <class A> inline Op make_op(const char* name, OpFn fn, const A& args) {
  static_assert(__is_trivially_copyable(A) && sizeof(A) <= kOpArgs, "arguments of an op are plain and small");
  Op op;
  op.fn = fn;
  op.name = name;
  __builtin_memcpy(op.args, &args, sizeof(A));
  return op;
}
