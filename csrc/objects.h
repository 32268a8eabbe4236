// The handles that Python holds: weights, activations, KV layers, tapes, and the runtime that runs ops on them.
#pragma once
#include "args.h"
#include "memory.h"
#include "pool.h"

#include <deque>
#include <map>
#include <memory>
#include <nanobind/nanobind.h>
#include <string>
#include <tuple>
#include <vector>

namespace nb = nanobind;

// Kernels for this machine by name; "" means the best one. Throws nb::value_error with a sentence.
const Kernels& find_kernels(const std::string& name);
std::vector<std::string> usable_kernels();       // best first

struct Weight {
  WeightView view;
  int out_features;
  bool gated;
  Piece memory;
  Weight(Arena& arena, int kind, int n, int k, int gated_features);
};

struct Activation {
  ActView view;
  int max_rows;
  std::shared_ptr<Mapping> memory;
  Activation(int max_rows, int width, bool ints, bool floats);
};

struct KVLayer {
  KVView view;
  std::shared_ptr<Mapping> memory;     // of all layers
  // The layers of a model, run by run: a token takes memory in one place, not a huge page of every layer.
  static std::vector<KVLayer> make(int num_layers, int num_slots, int heads, int dim);
  // Has the system bring the memory of slots [start, end), of all layers. Changes nothing in it; anybody may write meanwhile.
  void touch(int start, int end) const;
};

struct Tape {
  std::vector<Op> ops;
  std::vector<uint64_t> spent;
  std::vector<nb::object> keep;        // every array and handle that the ops point to
};

class Runtime {
 public:
  Runtime(int threads, const std::string& isa, int spin_us, bool ahead);
  const Kernels& kernels() const { return *kernels_; }
  Pool& pool() { return pool_; }
  Arena& arena() { return arena_; }

  void begin(nb::object tape);
  void end();
  bool recording() const { return tape_ != nullptr; }
  // Runs the ops on all threads without the GIL, or appends them to the tape that is being recorded. Ops that must agree on
  // the number of threads (attention and attention_finish) go in one call.
  void run(const Op* ops, size_t count, std::vector<nb::object>& keep);
  void run(const Op& op, std::vector<nb::object>& keep) { run(&op, 1, keep); }
  void run_now(const Op* ops, size_t count = 1);
  // With `ahead` `start` and `replay` return at once, and what they began is done in the order of the calls, before anything that runs
  // now. They return the number of the job to wait for; otherwise they run, and it is finished.
  uint64_t start(const Op& op, std::vector<nb::object>& keep);
  uint64_t replay(nb::object tape, bool profile);
  void wait(uint64_t job);
  void finish() { wait(pool_.submitted()); }
  // Work buffers, one for each size that was ever asked for; they live as long as the runtime.
  void* buffer(const char* what, size_t bytes);

 private:
  // What was started: its ops, where they are not a tape's, and everything that must stay until it is finished.
  struct Started {
    uint64_t job;
    std::unique_ptr<Op> op;
    std::vector<nb::object> keep;
  };
  void forget_finished();

  const Kernels* kernels_;
  const bool ahead_;
  std::deque<Started> started_;
  Pool pool_;
  Arena arena_;
  nb::object tape_object_;
  Tape* tape_ = nullptr;
  std::map<std::tuple<std::string, size_t>, std::unique_ptr<Mapping>> buffers_;
};
