#include "pool.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;

uint64_t nanoseconds() {
  return uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count());
}

inline void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Denormal numbers are taken as zero on every thread alike, or results would depend on who computed them.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : old_(_mm_getcsr()) { _mm_setcsr(old_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(old_); }
 private:
  unsigned old_;
#elif defined(__aarch64__)
  FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(old_));
    __asm__ volatile("msr fpcr, %0" : : "r"(old_ | (uint64_t(1) << 24)));
  }
  ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(old_)); }
 private:
  uint64_t old_;
#endif
};

constexpr int kSpins = 4000;           // in a barrier, about 0.1 ms: then a core may have been taken away
// Threads are given up when waiting took this share of their time, and this much of it. While one waits, another has lost its
// core, so a quarter waited is half the work lost: two threads are then no faster than one. A wait counts if no unit of work is
// that long: shorter ones are work that does not divide. What is older than the window counts half.
constexpr double kLostShare = 0.25, kLostNs = 5e6, kLongNs = 1e5, kWindowNs = 1e8;
constexpr uint64_t kHoldMinNs = 40'000'000, kHoldMaxNs = 640'000'000;

double ticks_per_ns() {
#if defined(__x86_64__)
  static const double rate = [] {
    const uint64_t n0 = nanoseconds(), t0 = __rdtsc();
    while (nanoseconds() - n0 < 2'000'000) pause_cpu();
    return double(__rdtsc() - t0) / double(nanoseconds() - n0);
  }();
  return rate;
#else
  return 1.0;
#endif
}

}  // namespace

uint64_t ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return nanoseconds();
#endif
}

Pool::Pool(int threads, int spin_us)
    : size_(threads), spin_us_(spin_us), owner_(long(getpid())), state_(size_t(threads > 0 ? threads : 0)), limit_(threads), hold_(kHoldMinNs) {
  if (threads < 1 || threads > kMaxThreads) throw std::invalid_argument("threads must be between 1 and 256");
  ticks_per_ns();                      // measured now, not in a run
  void* p = nullptr;
  if (posix_memalign(&p, 4096, kScratchBytes * size_t(threads))) throw std::bad_alloc();
  scratch_ = static_cast<char*>(p);
  for (int i = 1; i < threads; i++) threads_.emplace_back([this, i] { worker(i); });
}

Pool::~Pool() {
  if (forked()) {                      // the threads exist only in the parent
    for (auto& t : threads_) t.detach();
    return;
  }
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& t : threads_) t.join();
  free(scratch_);
}

bool Pool::forked() const { return owner_ != long(getpid()); }

void Pool::set_adaptive(bool on) {
  std::lock_guard<std::mutex> lock(run_mutex_);
  adaptive_ = on;
  limit_ = size_;
  hold_ = kHoldMinNs;
}

// Claims the threads n, n + 1, ... that are awake, up to limit_; returns how many threads there are with them.
int Pool::claim_from(int n) {
  for (int limit = limit_; n < limit; n++) {
    int awake = kAwake;
    if (!state_[size_t(n)].state.compare_exchange_strong(awake, kClaimed, std::memory_order_acq_rel)) break;
  }
  return n;
}

// Wakes the threads that may take part.
void Pool::call() {
  const int limit = limit_;
  if (limit == 1) return;
  wanted_.store(((wanted_.load(std::memory_order_relaxed) >> 16) + 1) << 16 | uint64_t(limit), std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) == 0) return;
  { std::lock_guard<std::mutex> lock(sleep_mutex_); }
  wake_.notify_all();
}

void Pool::invite(int n, size_t first_op) {
  first_op_ = first_op;
  const uint64_t number = (job_.load(std::memory_order_relaxed) >> 16) + 1;
  job_.store(number << 16 | uint64_t(n), std::memory_order_release);
}

void Pool::run(const Op* ops, size_t count, uint64_t* spent) {
  if (count == 0) return;
  std::lock_guard<std::mutex> lock(run_mutex_);
  FlushDenormals flush;
  if (forked()) limit_ = 1, adaptive_ = false;
  else take_back();
  ops_ = ops;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  running_.store(true, std::memory_order_relaxed);
  call();
  int n = claim_from(1);
  for (int k = 1; !adaptive_ && n < limit_; k++) {
    if (k % 256 == 0) call();          // one may have fallen asleep since
    pause_cpu();
    n = claim_from(n);
  }
  began_ = ticks();
  phase_.store(((phase_.load(std::memory_order_relaxed) >> 16) + 1) << 16 | uint64_t(n), std::memory_order_relaxed);
  if (n > 1) invite(n, 0);
  work(0, n, 0, spent);
  running_.store(false, std::memory_order_relaxed);
  lasted_ += double(ticks() - began_) * double(limit_);
  if (limit_ == size_ && ++good_runs_ >= 16) hold_ = kHoldMinNs;
}

// After a while without them, all threads may take part again. True if that changed something.
bool Pool::take_back() {
  if (limit_ == size_ || nanoseconds() < retry_at_) return false;
  limit_ = size_;
  waited_ = lasted_ = 0;
  began_ = ticks();
  return true;
}

// Half of n threads go on: one of them waits too much for the others.
void Pool::give_up(int n) {
  limit_ = (n + 1) / 2;
  waited_ = lasted_ = 0;
  began_ = ticks();
  retry_at_ = nanoseconds() + hold_;
  hold_ = hold_ * 2 < kHoldMaxNs ? hold_ * 2 : kHoldMaxNs;
  good_runs_ = 0;
}

void Pool::work(int tid, int n, size_t first, uint64_t* spent) {
  const Op* ops = ops_;
  const size_t count = count_;
  for (size_t i = first; i < count; i++) {
    const uint64_t t0 = spent ? ticks() : 0;
    const Ctx c{tid, n, size_, &next_, scratch_ + kScratchBytes * size_t(tid)};
    ops[i].fn(ops[i].args, c);
    n = barrier(tid, n, i + 1);
    if (spent) spent[i] += ticks() - t0;
    if (tid >= n) return;              // given up
  }
}

// Waits for the n threads that run this op; returns how many run the next.
int Pool::barrier(int tid, int n, size_t next_op) {
  const uint64_t phase = phase_.load(std::memory_order_relaxed);
  if (n > 1) state_[size_t(tid)].arrived.store(ticks(), std::memory_order_relaxed);
  if (n == 1 || arrived_.fetch_add(1, std::memory_order_acq_rel) == n - 1) {
    const int m = judge(n, next_op);
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    if (n == 1 && m == 1) return 1;
    phase_.store(((phase >> 16) + 1) << 16 | uint64_t(m), std::memory_order_seq_cst);
    if (blocked_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> lock(sleep_mutex_); }
      go_on_.notify_all();
    }
    if (m > n) invite(m, next_op);
    return m;
  }
  for (int k = 0; k < kSpins; k++) {
    const uint64_t now = phase_.load(std::memory_order_acquire);
    if (now != phase) return int(now & 0xffff);
    pause_cpu();
  }
  // Whoever we wait for has lost its core: sleeping leaves it ours.
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  blocked_.fetch_add(1, std::memory_order_seq_cst);
  uint64_t now;
  go_on_.wait(lock, [&] { return (now = phase_.load(std::memory_order_seq_cst)) != phase; });
  blocked_.fetch_sub(1, std::memory_order_relaxed);
  return int(now & 0xffff);
}

// At a barrier where all n threads are: how many go on. All leave after the last op.
int Pool::judge(int n, size_t next_op) {
  if (next_op == count_) return n;
  if (n > 1 && adaptive_) {
    const uint64_t now = ticks();
    const double rate = ticks_per_ns();
    lasted_ += double(now - began_) * double(n);
    began_ = now;
    if (lasted_ > kWindowNs * rate * double(n)) waited_ *= 0.5, lasted_ *= 0.5;
    for (int i = 0; i < n; i++) {
      const double waited = double(now - state_[size_t(i)].arrived.load(std::memory_order_relaxed));
      if (waited > kLongNs * rate) waited_ += waited;
    }
    if (waited_ > kLostNs * rate && waited_ > kLostShare * lasted_) {
      give_up(n);
      return limit_;
    }
  }
  if (adaptive_ && take_back()) call();
  return n < limit_ ? claim_from(n) : n;
}

// Between runs: spins for a while, giving way to others after the first moments, then sleeps until a run could use it. A
// thread is invited only after it said that it is awake, so whatever was in job_ before is not for it.
int Pool::wait_for_invitation(int tid) {
  auto& state = state_[size_t(tid)].state;
  for (;;) {
    const uint64_t seen = job_.load(std::memory_order_acquire), run = wanted_.load(std::memory_order_acquire);
    state.store(kAwake, std::memory_order_release);
    const uint64_t begin = nanoseconds();
    for (int k = 0; !stop_.load(std::memory_order_relaxed); k++) {
      const uint64_t job = job_.load(std::memory_order_acquire);
      if (job != seen && tid < int(job & 0xffff)) return int(job & 0xffff);
      pause_cpu();
      if (k % 64 != 63) continue;
      const uint64_t gone = nanoseconds() - begin;
      // Where a run could use it, the next barrier may be a long op away.
      const bool wanted = running_.load(std::memory_order_relaxed) && tid < limit_.load(std::memory_order_relaxed);
      int awake = kAwake;
      if (gone > uint64_t(spin_us_) * 1000 && !wanted && state.compare_exchange_strong(awake, kAsleep, std::memory_order_acq_rel)) break;
      if (gone > 20'000) sched_yield();
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] {
      const uint64_t now = wanted_.load(std::memory_order_seq_cst);
      return stop_.load() || (now != run && tid < int(now & 0xffff));
    });
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
    if (stop_.load()) return 0;
  }
}

void Pool::worker(int tid) {
  FlushDenormals flush;
  for (;;) {
    const int n = wait_for_invitation(tid);
    if (stop_.load()) return;
    work(tid, n, first_op_, nullptr);
  }
}
