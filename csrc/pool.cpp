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

constexpr int kSpinsBeforeYield = 4000;          // in a barrier, about 0.1 ms: then the other core may have been taken away
constexpr uint64_t kShortRunNs = 100'000;        // runs shorter than this say nothing about the machine
constexpr double kTooMuchWaiting = 0.25;         // share of the threads' time
constexpr uint64_t kHoldMinNs = 20'000'000, kHoldMaxNs = 640'000'000;

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
    : size_(threads), spin_us_(spin_us), owner_(long(getpid())), waited_(size_t(threads)), active_(threads), hold_(kHoldMinNs) {
  if (threads < 1 || threads > kMaxThreads) throw std::invalid_argument("threads must be between 1 and 256");
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
    job_.fetch_add(uint64_t(1) << 16);
  }
  wake_.notify_all();
  for (auto& t : threads_) t.join();
  free(scratch_);
}

bool Pool::forked() const { return owner_ != long(getpid()); }

void Pool::set_adaptive(bool on) {
  std::lock_guard<std::mutex> lock(run_mutex_);
  adaptive_ = on;
  active_ = size_;
  strikes_ = good_runs_ = 0;
  hold_ = kHoldMinNs;
  retry_at_ = 0;
}

void Pool::run(const Op* ops, size_t count, uint64_t* spent) {
  std::lock_guard<std::mutex> lock(run_mutex_);
  FlushDenormals flush;
  if (forked()) active_ = 1, adaptive_ = false;
  const bool retry = active_ < size_ && adaptive_ && nanoseconds() >= retry_at_;
  if (retry) active_ = size_;
  const int n = active_;
  next_.store(0, std::memory_order_relaxed);
  if (n == 1) {
    work(0, 1, ops, count, spent);
    return;
  }
  ops_ = ops;
  count_ = count;
  for (int i = 0; i < n; i++) waited_[size_t(i)].ticks.store(0, std::memory_order_relaxed);
  const uint64_t job = job_.load(std::memory_order_relaxed);
  job_.store((((job >> 16) + 1) << 16) | uint64_t(n), std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) {
    { std::lock_guard<std::mutex> sleep(sleep_mutex_); }
    wake_.notify_all();
  }
  const uint64_t t0 = ticks();
  work(0, n, ops, count, spent);
  if (adaptive_) adapt(ticks() - t0);
}

// Called after a run with all threads. A run in which much of the threads' time went into waiting is a strike; two of them, or
// one very long one, and half the threads are given up for a while, a longer while each time it happens again.
void Pool::adapt(uint64_t total) {
  const double ns = double(total) / ticks_per_ns();
  if (ns < double(kShortRunNs)) return;
  uint64_t waited = 0;
  for (int i = 0; i < active_; i++) waited += waited_[size_t(i)].ticks.load(std::memory_order_relaxed);
  const bool bad = double(waited) > kTooMuchWaiting * double(total) * double(active_);
  if (!bad) {
    strikes_ = 0;
    if (++good_runs_ >= 16) hold_ = kHoldMinNs;
    return;
  }
  good_runs_ = 0;
  if (++strikes_ < 2 && ns < 2e7) return;
  strikes_ = 1;                        // after the hold one bad run is enough
  active_ = (active_ + 1) / 2;
  retry_at_ = nanoseconds() + hold_;
  hold_ = hold_ * 2 < kHoldMaxNs ? hold_ * 2 : kHoldMaxNs;
}

void Pool::work(int tid, int n, const Op* ops, size_t count, uint64_t* spent) {
  const Ctx c{tid, n, &next_, scratch_ + kScratchBytes * size_t(tid)};
  for (size_t i = 0; i < count; i++) {
    const uint64_t t0 = spent ? ticks() : 0;
    ops[i].fn(ops[i].args, c);
    if (n == 1) next_.store(0, std::memory_order_relaxed);
    else barrier(tid, n);
    if (spent) spent[i] += ticks() - t0;
  }
}

void Pool::barrier(int tid, int n) {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  const uint64_t t0 = ticks();
  for (int k = 0; phase_.load(std::memory_order_acquire) == phase; k++) {
    if (k < kSpinsBeforeYield) pause_cpu();
    else sched_yield();
  }
  auto& w = waited_[size_t(tid)].ticks;
  w.store(w.load(std::memory_order_relaxed) + (ticks() - t0), std::memory_order_relaxed);
}

// Spins for a while, giving way to others after the first moments, then sleeps.
uint64_t Pool::wait_for_job(int tid, uint64_t seen) {
  const auto mine = [&](uint64_t job) { return job != seen && (tid < int(job & 0xffff) || stop_.load()); };
  const uint64_t begin = nanoseconds();
  uint64_t job;
  for (int k = 0; !mine(job = job_.load(std::memory_order_acquire)); k++) {
    pause_cpu();
    if (k % 64 != 63) continue;
    const uint64_t gone = nanoseconds() - begin;
    if (gone < 20'000) continue;
    if (gone < uint64_t(spin_us_) * 1000) {
      sched_yield();
      continue;
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return mine(job = job_.load(std::memory_order_seq_cst)); });
    sleeping_.fetch_sub(1, std::memory_order_relaxed);
    return job;
  }
  return job;
}

void Pool::worker(int tid) {
  FlushDenormals flush;
  uint64_t seen = 0;
  for (;;) {
    seen = wait_for_job(tid, seen);
    if (stop_.load()) return;
    work(tid, int(seen & 0xffff), ops_, count_, nullptr);
  }
}
