// The thread pool: runs a list of ops on all threads, with a barrier after each.
//
// Threads are persistent. Between runs they spin for a bounded time and then sleep, so an idle process uses no CPU. A core that
// somebody else is using would make every barrier wait for it; so the pool watches how much of a run its threads spend
// waiting, gives threads up when that is too much, and tries from time to time to take them back. How many threads run never
// changes a result.
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
  int active() const { return active_; }
  void set_adaptive(bool on);
  // Runs ops[0], ops[1], ... in order. `spent`, if given, has `count` counters to which the ticks of each op are added. One run
  // at a time: a second caller waits.
  void run(const Op* ops, size_t count, uint64_t* spent = nullptr);

 private:
  struct alignas(64) Waited { std::atomic<uint64_t> ticks{0}; };

  void work(int tid, int n, const Op* ops, size_t count, uint64_t* spent);
  void barrier(int tid, int n);
  void worker(int tid);
  uint64_t wait_for_job(int tid, uint64_t seen);
  void adapt(uint64_t total);
  bool forked() const;

  const int size_;
  const int spin_us_;
  const long owner_;                   // the process that has the threads: a forked child has none
  char* scratch_;
  std::vector<std::thread> threads_;
  std::mutex run_mutex_;

  const Op* ops_ = nullptr;
  size_t count_ = 0;
  // Number of the job in the upper bits, threads that take part in the low 16: one word, so that a thread that is left out
  // never looks at anything else.
  alignas(64) std::atomic<uint64_t> job_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int> next_{0};
  std::vector<Waited> waited_;

  bool adaptive_ = true;
  int active_;                         // threads that the next run uses
  int strikes_ = 0, good_runs_ = 0;
  uint64_t hold_, retry_at_ = 0;
};
