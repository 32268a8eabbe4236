// The handles that Python holds: weights, activations, KV layers, tapes, and the runtime that runs ops on them.
#pragma once
#include "args.h"
#include "memory.h"
#include "pool.h"

#include <deque>
#include <map>
#include <memory>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
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
  Weight(const Piece& stored, int kind, int n, int k, int gated_features);     // packed already; nb::value_error if that is not its size
};

// The matrices of a layer's experts: `num_experts` of out_features rows each.
struct Bank {
  BankView view;
  int num_experts, out_features;
  bool gated;
  Piece memory;
  Bank(Arena& arena, int kind, int num_experts, int n, int k, int gated_features);
  Bank(const Piece& stored, int kind, int num_experts, int n, int k, int gated_features);

 private:
  Bank(Arena* arena, const Piece* stored, int kind, int num_experts, int n, int k, int gated_features);
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
  // The layers of a model, run by run: a token takes memory in one place, not a huge page of every layer. `form`: float16, int8, fp8_e4m3.
  static std::vector<KVLayer> make(int num_layers, int num_slots, int heads, int dim, const std::string& form);
  size_t layer_bytes() const;          // of a layer in a run
  // Has the system bring the memory of slots [start, end), of all layers. Changes nothing in it; other threads may write meanwhile.
  void touch(int start, int end) const;
};

// Memory that ops point to: it must stay until they have run. The arrays are held as their owners exported them, which also forbids
// those that could (array.array, bytearray) to move their memory meanwhile.
struct Kept {
  std::vector<nb::object> objects;
  std::vector<nb::ndarray<nb::ro>> arrays;
  void add(Kept&& more);
};

struct Tape {
  std::vector<Op> ops;
  std::vector<uint64_t> spent;         // ticks of each op, of the profiled replays
  Kept keep;
  uint64_t owner = 0;                  // the runtime that recorded it: the ops lead to its buffers
  bool recording = false;
};

// For as long as this lives, other Python threads run. A daemon thread that comes back when the interpreter has ended is ended by
// it, by unwinding the stack, which would abort the process in the C++ frames above: such a thread sleeps here until the process ends.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  ~Released();
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* state_;
};

// A forked child leaves its parent's pool as it is: it could neither join the threads nor release the locks.
struct DeletePool {
  void operator()(Pool* pool) const {
    if (!pool->forked()) delete pool;
  }
};

// Jobs are known outside by { 16 bits of their runtime's number, 48 bits of their own }, so that one cannot be taken for another's.
class Runtime {
 public:
  Runtime(int threads, const std::string& isa, int spin_us, bool ahead);
  const Kernels& kernels() const { return *kernels_; }
  Pool& pool();                        // in a forked child a new one
  Arena& arena() { return arena_; }

  // Between `begin` and `end` the ops that this thread calls are appended to the tape; those of other threads run.
  void begin(nb::object tape);
  void end();
  bool recording() const { return tape_ != nullptr && recorder_ == std::this_thread::get_id(); }
  // Runs the ops on all threads without the GIL, or appends them to the tape that is being recorded. Ops that must agree on
  // the number of threads (attention and attention_finish) go in one call.
  void run(const Op* ops, size_t count, Kept& keep);
  void run(const Op& op, Kept& keep) { run(&op, 1, keep); }
  void run_now(const Op* ops, size_t count = 1);
  // With `ahead` `start` and `replay` return at once, and what they began is done in the order of the calls, before anything that runs
  // now. They return the job to wait for; otherwise they run, and it is finished.
  uint64_t start(const Op& op, Kept& keep);
  uint64_t replay(nb::object tape, bool profile);
  void wait(uint64_t job);             // 0: for none. nb::value_error for a job that this runtime never started
  void finish() { wait_for(pool().submitted()); }
  // Work buffers, one for each size that was ever asked for; they live as long as the runtime.
  void* buffer(const char* what, size_t bytes);

 private:
  // A started job: its ops, where they are not a tape's, and everything that must stay until it is finished.
  struct Started {
    uint64_t number = 0;
    const Tape* tape = nullptr;
    std::unique_ptr<Op> op;
    Kept keep;
  };
  uint64_t submit(Started started, const Op* ops, size_t count, uint64_t* spent);
  uint64_t tagged(uint64_t number) const;
  void wait_for(uint64_t number);
  void forget_finished();
  bool runs(const Tape& tape);
  void replace_pool();

  const Kernels* kernels_;
  const bool ahead_;
  const int spin_us_;
  const uint64_t id_;                  // of this runtime, from 1
  std::vector<std::pair<uint64_t, uint64_t>> lost_;        // jobs (after, up to) that ran when the process was forked
  nb::object tape_object_;
  Tape* tape_ = nullptr;
  std::thread::id recorder_;
  // From here on the order counts: the pool goes first, when all jobs are done, and then what they used.
  Arena arena_;
  std::map<std::tuple<std::string, size_t>, std::unique_ptr<Mapping>> buffers_;
  std::deque<Started> started_;
  std::unique_ptr<Pool, DeletePool> pool_;
};
