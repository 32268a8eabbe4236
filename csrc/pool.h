// The thread pool: runs a list of ops on all threads, with a barrier after each.
//
// Threads are persistent. Between runs they spin for a bounded time and then sleep, so an idle process uses no CPU. Nobody
// waits for a sleeper: a run starts with the threads that are awake, and those that wake up join at the next barrier. Nor for
// long for a core that somebody else is using: when a run's threads lose too much time waiting for each other, half of them
// leave it at the next barrier and stay out for a while, a longer while each time it happens again. How many threads run
// never changes a result.
#pragma once
#include "op.h"
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

uint64_t ticks();                      // of a fast clock: the time stamp counter where there is one, else nanoseconds

class Pool {
 public:
  Pool(int threads, int spin_us);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return size_; }
  int active() const { return limit_.load(); }   // threads that may run now
  void set_adaptive(bool on);                    // off: always all threads, and runs wait for them
  // Runs ops[0], ops[1], ... in order. `spent`, if given, has `count` counters to which the ticks of each op are added. One run
  // at a time: a second caller waits.
  void run(const Op* ops, size_t count, uint64_t* spent = nullptr);

 private:
  // A thread that is awake between runs may be claimed; then it is invited at once. Only an unclaimed thread falls asleep.
  enum State : int { kClaimed, kAwake, kAsleep };
  struct alignas(64) Thread {
    std::atomic<int> state{kClaimed};
    std::atomic<uint64_t> arrived{0};            // when it came to the barrier
  };

  void work(int tid, int n, size_t first, uint64_t* spent);
  int barrier(int tid, int n, size_t next_op);
  int judge(int n, size_t next_op);
  int claim_from(int n);
  void call();
  bool take_back();
  void give_up(int n);
  void invite(int n, size_t first_op);
  void worker(int tid);
  int wait_for_invitation(int tid);
  bool forked() const;

  const int size_;
  const int spin_us_;
  const long owner_;                   // the process that has the threads: a forked child has none
  char* scratch_;
  std::vector<std::thread> threads_;
  std::vector<Thread> state_;
  std::mutex run_mutex_;

  // The run. Written by the caller, and at a barrier by the last thread to arrive there.
  const Op* ops_ = nullptr;
  size_t count_ = 0, first_op_ = 0;    // first_op_: where those that are invited now begin
  uint64_t began_ = 0;
  double waited_ = 0, lasted_ = 0;     // ticks lost and ticks run of late, times threads

  // Number of the invitation in the upper bits, threads invited (0 .. n-1) in the low 16.
  alignas(64) std::atomic<uint64_t> job_{0};
  // Number of the barrier in the upper bits, threads that run the next op in the low 16.
  alignas(64) std::atomic<uint64_t> phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> next_{0};
  // Number of the run in the upper bits, threads it could use in the low 16: what sleepers wait for.
  alignas(64) std::atomic<uint64_t> wanted_{0};
  std::atomic<int> sleeping_{0}, blocked_{0};    // between runs; in a barrier
  std::atomic<bool> stop_{false}, running_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_, go_on_;

  bool adaptive_ = true;
  std::atomic<int> limit_;
  int good_runs_ = 0;
  uint64_t hold_, retry_at_ = 0;       // nanoseconds
};
