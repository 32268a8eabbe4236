// The thread pool: runs jobs, which are lists of ops, on all threads, with a barrier after each op.
//
// Jobs run one after the other, in the order in which they were submitted. A thread that is free leads the next one; others join it
// when they are. The thread that submits is a thread of the pool as long as it waits, and only then: so a job begins while the
// caller does something else, and the caller lends a hand when it needs the result.
//
//     caller     submit 1 | plan, write ...  | wait 1: joins          | submit 2 | ...
//     worker              | leads 1 .................................|          | leads 2 ...
//
// Threads are persistent. Between jobs they spin for a bounded time and then sleep, so an idle process uses no CPU. Nobody
// waits for a sleeper: a job starts with the threads that are awake, and those that wake up join at the next barrier. Nor for
// long for a core that somebody else is using: when a job's threads lose too much time waiting for each other, half of them
// leave it at the next barrier and stay out for a while, a longer while each time it happens again. How many threads run
// never changes a result.
#pragma once
#include "op.h"
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

uint64_t ticks();                      // of a fast clock: the time stamp counter where there is one, else nanoseconds

class Pool {
 public:
  // So many threads run a job. `ahead`: one thread besides the caller's there is in any case, so that jobs begin without it.
  Pool(int threads, int spin_us, bool ahead);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return size_; }
  int active() const { return limit_.load(); }   // threads that may run now
  void set_adaptive(bool on);                    // off: always all threads, and jobs wait for them; between jobs only
  // Jobs are numbered from 1; `ops` must stay until job `submit` is finished. `spent`, if given, has `count` counters to which
  // the ticks of each op are added.
  uint64_t submit(const Op* ops, size_t count, uint64_t* spent = nullptr);
  // Takes part until that job is finished. One caller at a time: a second one waits for the first.
  void wait(uint64_t job);
  uint64_t submitted() const { return submitted_.load(std::memory_order_acquire); }
  uint64_t finished() const { return finished_.load(std::memory_order_acquire); }
  void run(const Op* ops, size_t count, uint64_t* spent = nullptr) { wait(submit(ops, count, spent)); }

 private:
  struct Job {
    const Op* ops;
    size_t count;
    uint64_t* spent;
  };
  // Where a thread waits to be invited to a job: 0 is the caller's. Whoever makes `free` false, its thread or one that invites it,
  // decides; a thread that was claimed gets its invitation at once.
  struct alignas(64) Seat {
    std::atomic<bool> free{false};
    std::atomic<uint64_t> until{0};              // the last job it will take part in
    std::atomic<uint64_t> invitation{0};         // its number in the upper bits, then 16 bits of place and of threads
  };
  struct alignas(64) Place {                     // one of the n threads of a job: 0 leads it
    std::atomic<uint64_t> arrived{0};            // when it came to the barrier
  };

  void attend(int seat, uint64_t until);
  uint64_t wait_for_invitation(int seat, uint64_t until);
  bool retire(Seat& seat);
  void sleep(int seat, uint64_t until);
  bool may_lead(int seat) const;
  bool has_work(int seat) const;
  bool is_wanted() const;
  bool lead(uint64_t until);
  int run_job(const Job& job, int team);
  void work(int place, int n, size_t first);
  int barrier(int place, int n, size_t next_op);
  void finish_op(size_t next_op);
  int judge(int n, size_t next_op);
  int claim_from(int n);
  void invite(int n, size_t first_op);
  void call();
  bool take_back();
  void give_up(int n);
  bool forked() const;

  const int size_;
  const int spin_us_;
  const long owner_;                   // the process that has the threads: a forked child has none
  char* scratch_;
  std::vector<std::thread> threads_;
  std::vector<Seat> seats_;
  std::vector<Place> places_;
  std::mutex caller_mutex_;

  std::mutex queue_mutex_;
  std::deque<Job> queue_;
  alignas(64) std::atomic<uint64_t> submitted_{0}, finished_{0};
  std::atomic<bool> led_{false};       // somebody leads: the fields below are its own, or at a barrier those of the last to arrive

  Job job_{};
  size_t first_op_ = 0;                // where those that are invited now begin
  std::vector<int> claimed_;           // seats
  uint64_t op_began_ = 0, began_ = 0;
  double waited_ = 0, lasted_ = 0;     // ticks lost and ticks run of late, times threads

  // Number of the barrier in the upper bits, threads that run the next op in the low 16.
  alignas(64) std::atomic<uint64_t> phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> num_free_{0};
  std::atomic<int> sleeping_{0}, blocked_{0}, callers_asleep_{0};    // workers between jobs; anyone in a barrier; callers
  std::atomic<bool> stop_{false};
  std::mutex sleep_mutex_;
  std::condition_variable wake_, go_on_, done_;

  bool adaptive_ = true;
  std::atomic<int> limit_;
  uint64_t hold_, retry_at_ = 0, whole_since_ = 0;       // nanoseconds: how long threads stay out, until when, since when none does
};
