// The thread pool: runs jobs, which are lists of ops, on all threads, with a barrier after each op.
//
// Jobs run one after the other, in the order in which they were submitted. A thread that is free leads the next one; others join it
// when they are. The thread that submits is a thread of the pool as long as it waits, and only then: so a job begins while the
// caller does something else, and the caller lends a hand when it needs the result.
//
//     caller     submit 1 | plan, write ...  | wait 1: joins          | submit 2 | ...
//     worker              | leads 1 .................................|          | leads 2 ...
//
// Threads are persistent. Between jobs they spin for a bounded time and then sleep, so an idle process uses no CPU. A job never
// waits for a sleeper: it starts with the threads that are awake, and those that wake up join at the next barrier. Nor does it wait
// long for a core that another process uses: when a job's threads lose too much time waiting for each other, half of them leave it
// at the next barrier and stay out for a while, a longer while each time it happens again. The number of threads never changes a
// result.
//
// A job's threads have places 0 .. n - 1; place 0 leads. What a thread may write (scratch, its share of the work) follows from its
// place, so at any moment a place must belong to one thread. `phase_` is { number of the barrier, threads of the next op }:
//
//     phase    7 | 4      8 | 2        9 | 2       10 | 3
//     place 0  op 3       op 4         op 5        op 6
//     place 1  op 3       op 4         op 5        op 6
//     place 2  op 3 > out              .           op 6    a seat that was free, invited at barrier 10
//     place 3  op 3 > out              .           .
//
// 1. Barrier k opens when all threads of phase k have arrived. So a thread that goes on never sees the number move by more than one.
// 2. A thread that was given up at k may sleep until much later and find any phase. If the number moved by more than one, it was
//    given up, whatever the lower half says: its place belongs to another thread by now.
// 3. Between the last arrival and the new phase only the last to arrive touches the fields of the job, of time and of those invited.
//    It stores the phase before it invites: a thread invited at k reads phase k, and k + 1 cannot come without it.
// 4. A seat is free, or its thread does something else. The thread that turns `free` false decides; a claimed seat is always invited.
// 5. A job counts as finished before its last barrier opens. Nothing of it (ops, counters) is read after that.
//
// A pool belongs to the process that made it. A forked child has none of its threads, and copies of its locks as they were: it can
// neither use nor destroy the pool. Its owner leaves it alone there and makes another (Runtime::pool).
#pragma once
#include "delays.h"
#include "op.h"
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

uint64_t ticks();                      // of a fast clock: the time stamp counter where there is one, else nanoseconds

class Pool {
 public:
  // So many threads run a job. `ahead`: one thread besides the caller's there is in any case, so that jobs begin without it.
  // The first job's number is `jobs_before` + 1. Throws std::system_error when the system has no more threads.
  Pool(int threads, int spin_us, bool ahead, uint64_t jobs_before = 0);
  ~Pool();                             // when everything that was submitted is done
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return size_; }
  int active() const { return limit_.load(); }   // threads that may run now
  // From the next job on. Off: always all of the pool's threads, and jobs wait for them.
  void set_adaptive(bool on) { wants_adaptive_.store(on); }
  bool wants_adaptive() const { return wants_adaptive_.load(); }
  bool forked() const;                           // this process is a child of the one that made the pool
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
  // Where a thread waits to be invited to a job: 0 is the caller's. The thread that makes `free` false, the seat's own or an inviting one,
  // decides; a thread that was claimed gets its invitation at once.
  struct alignas(64) Seat {
    std::atomic<bool> free{false};
    std::atomic<uint64_t> until{0};              // the last job it will take part in
    std::atomic<uint64_t> invitation{0};         // its number in the upper bits, then 16 bits of place and of threads
  };
  struct alignas(64) Place {                     // one of the n threads of a job: 0 leads it
    std::atomic<uint64_t> arrived{0};            // when it came to the barrier
  };

  void start_threads();
  void stop_threads();
  void attend(int seat, uint64_t until);
  uint64_t wait_for_invitation(int seat, uint64_t until);
  bool retire(Seat& seat);
  void sleep(int seat, uint64_t until);
  bool may_lead(int seat) const;
  bool has_work(int seat) const;
  bool is_wanted() const;
  bool lead(int seat, uint64_t until);
  int run_job(int seat, const Job& job, int team);
  void work(int place, int n, size_t first);
  int barrier(int place, int n, size_t next_op);
  void finish_op(size_t next_op);
  int judge(int n, size_t next_op);
  int claim_from(int n);
  void invite(int n, size_t first_op);
  void call();
  bool take_back();
  void give_up(int n);
  void adopt_mode();

  const int size_;
  const int spin_us_;
  const unsigned forks_;               // of the process that has the threads
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> scratch_;
  std::vector<std::thread> threads_;
  std::vector<Seat> seats_;
  std::vector<Place> places_;
  std::mutex caller_mutex_;

  std::mutex queue_mutex_;
  std::deque<Job> queue_;
  alignas(64) std::atomic<uint64_t> submitted_{0}, finished_{0};
  std::atomic<bool> led_{false};       // a thread leads: the fields below are its own, or at a barrier those of the last to arrive

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

  std::atomic<bool> wants_adaptive_{true};
  bool adaptive_ = true;                         // the leader's
  std::atomic<int> limit_;
  uint64_t hold_, retry_at_ = 0, whole_since_ = 0;       // nanoseconds: how long threads stay out, until when, since when none does
};
