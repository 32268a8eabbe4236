#include "pool.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif
#include <pthread.h>
#include <sched.h>

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

// Denormal numbers are taken as zero on every thread alike, or results would depend on the thread that computed them.
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

constexpr int kReturns = 64;           // a few microseconds
constexpr int kSpins = 4000;           // in a barrier, about 0.1 ms: then a core may have been taken away
// Threads are given up when waiting took this share of their time, and this much of it. While one waits, another has lost its
// core, so a quarter waited is half the work lost: two threads are then no faster than one, and a process that takes half a core
// is about there. A wait counts if no unit of work is that long: shorter ones are work that does not divide. What is older than
// the window counts half. They stay out for kHoldMinNs, and four times longer when that happens again before kGoodNs have passed.
#if defined(POOL_DELAYS)               // tests: all of that at any moment
constexpr double kLostShare = 0.12, kLostNs = 1e6, kLongNs = 2e4, kWindowNs = 1e7;
constexpr uint64_t kHoldMinNs = 2'000'000, kHoldMaxNs = 8'000'000, kGoodNs = 5'000'000;
#else
constexpr double kLostShare = 0.12, kLostNs = 4e6, kLongNs = 1e5, kWindowNs = 1e8;
constexpr uint64_t kHoldMinNs = 80'000'000, kHoldMaxNs = 640'000'000, kGoodNs = 250'000'000;
#endif

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

// The threads of the next op, for one that waited at a barrier when it was `phase` and finds it at `now`. None if it was away for
// more than one barrier: then it was given up at the first (see pool.h, 2).
inline int threads_after(uint64_t phase, uint64_t now) { return (now >> 16) - (phase >> 16) == 1 ? int(now & 0xffff) : 0; }

// How often this process's line of ancestors has forked since the first pool was made.
std::atomic<unsigned> num_forks{0};

int checked(int threads) {
  if (threads < 1 || threads > kMaxThreads) throw std::invalid_argument("threads must be between 1 and 256");
  return threads;
}

unsigned watch_forks() {
  static const int error = pthread_atfork(nullptr, nullptr, [] { num_forks.fetch_add(1, std::memory_order_relaxed); });
  if (error) throw std::bad_alloc();
  return num_forks.load(std::memory_order_relaxed);
}

}  // namespace

uint64_t ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return nanoseconds();
#endif
}

Pool::Pool(int threads, int spin_us, bool ahead, uint64_t jobs_before)
    : size_(checked(threads)), spin_us_(spin_us), forks_(watch_forks()), seats_(size_t(threads > 1 ? threads : 1 + ahead)),
      places_(seats_.size()), submitted_(jobs_before), finished_(jobs_before), limit_(threads), hold_(kHoldMinNs) {
  ticks_per_ns();                      // measured now, not in a run
  void* p = nullptr;
  if (posix_memalign(&p, 4096, kScratchBytes * size_t(threads))) throw std::bad_alloc();
  scratch_.reset(static_cast<char*>(p));
  claimed_.reserve(size_t(threads));
  start_threads();
}

void Pool::start_threads() {
  threads_.reserve(seats_.size());
  try {
    for (int i = 1; i < int(seats_.size()); i++) threads_.emplace_back([this, i] {
      FlushDenormals flush;
      attend(i, UINT64_MAX);
    });
  } catch (...) {                      // the system has no more: those that run must not outlive the pool
    stop_threads();
    throw;
  }
}

void Pool::stop_threads() {
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (auto& t : threads_) t.join();
}

// Jobs that were submitted are done first: their callers rely on it, and their ops use memory that is freed next.
Pool::~Pool() {
  wait(submitted());
  stop_threads();
}

bool Pool::forked() const { return forks_ != num_forks.load(std::memory_order_relaxed); }

// ---- jobs -------------------------------------------------------------------------------------------------------------------
uint64_t Pool::submit(const Op* ops, size_t count, uint64_t* spent) {
  uint64_t number;
  {
    std::lock_guard<std::mutex> lock(queue_mutex_);
    number = submitted_.load(std::memory_order_relaxed);
    if (count == 0) return number;
    queue_.push_back({ops, count, spent});
    submitted_.store(++number, std::memory_order_seq_cst);
  }
  call();
  return number;
}

void Pool::wait(uint64_t job) {
  if (finished() >= job) return;
  std::lock_guard<std::mutex> lock(caller_mutex_);
  FlushDenormals flush;
  attend(0, job);
}

// Leads jobs, or joins them where others lead, until that one is finished.
void Pool::attend(int seat, uint64_t until) {
  while (!stop_.load(std::memory_order_relaxed) && finished() < until) {
    if (may_lead(seat) && lead(seat, until)) continue;
    const uint64_t invitation = wait_for_invitation(seat, until);
    if (invitation) delay_at(Delay::invited, int(invitation >> 16 & 0xffff));
    if (invitation) work(int(invitation >> 16 & 0xffff), int(invitation & 0xffff), first_op_);
  }
}

// The caller may always: it waits for nothing else. When all threads but one are given up, one of the others still may, or nothing
// would be done while the caller is away.
bool Pool::may_lead(int seat) const { return seat <= 1 || seat < limit_.load(std::memory_order_seq_cst); }

bool Pool::lead(int seat, uint64_t until) {
  if (finished() == submitted_.load(std::memory_order_acquire) || led_.exchange(true, std::memory_order_acquire)) return false;
  bool any = false;
  int team = 1;
  while (finished() < until && !stop_.load(std::memory_order_relaxed)) {
    Job job;
    {
      std::lock_guard<std::mutex> lock(queue_mutex_);
      if (queue_.empty()) break;
      job = queue_.front();
      queue_.pop_front();
    }
    team = run_job(seat, job, team);
    any = true;
  }
  led_.store(false, std::memory_order_seq_cst);
  if (finished() != submitted_.load(std::memory_order_seq_cst)) call();
  return any;
}

// Returns how many threads were there at the end. `team`: of the job before, which are on their way back.
int Pool::run_job(int seat, const Job& job, int team) {
  adopt_mode();
  take_back();
  job_ = job;
  next_.store(0, std::memory_order_relaxed);
  const uint64_t phase = ((phase_.load(std::memory_order_relaxed) >> 16) + 1) << 16;
  phase_.store(phase | 1, std::memory_order_seq_cst);        // there is room: sleepers look
  if (limit_ > 1) call();
  int n = claim_from(1);
  for (int k = 0; n < team && n < limit_ && k < kReturns; k++) {
    pause_cpu();
    n = claim_from(n);
  }
  const int sure = seat == 0 ? limit_.load() : limit_ - 1; // the caller may be asleep until its job is done, or away
  for (int k = 1; !adaptive_ && n < sure; k++) {
    if (k % 256 == 0) call();          // one may have fallen asleep since
    pause_cpu();
    n = claim_from(n);
  }
  began_ = op_began_ = ticks();
  phase_.store(phase | uint64_t(n), std::memory_order_relaxed);
  if (n > 1) invite(n, 0);
  work(0, n, 0);
  lasted_ += double(ticks() - began_) * double(limit_);
  if (limit_ == size_ && hold_ > kHoldMinNs && nanoseconds() - whole_since_ > kGoodNs) hold_ = kHoldMinNs;
  return int(phase_.load(std::memory_order_relaxed) & 0xffff);
}

void Pool::adopt_mode() {
  const bool wanted = wants_adaptive_.load(std::memory_order_relaxed);
  if (adaptive_ == wanted) return;
  adaptive_ = wanted;
  limit_ = size_;
  hold_ = kHoldMinNs;
}

void Pool::work(int place, int n, size_t first) {
  const Op* ops = job_.ops;
  const size_t count = job_.count;
  for (size_t i = first; i < count; i++) {
    const Ctx c{place, n, size_, &next_, scratch_.get() + kScratchBytes * size_t(place)};
    ops[i].fn(ops[i].args, c);
    n = barrier(place, n, i + 1);
    if (place >= n) return;            // given up
  }
}

// Waits for the n threads that run this op; returns how many run the next.
int Pool::barrier(int place, int n, size_t next_op) {
  const uint64_t phase = phase_.load(std::memory_order_relaxed);
  delay_at(Delay::before_arrival, place);
  if (n > 1) places_[size_t(place)].arrived.store(ticks(), std::memory_order_relaxed);
  if (n == 1 || arrived_.fetch_add(1, std::memory_order_acq_rel) == n - 1) {
    const int m = judge(n, next_op);
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    finish_op(next_op);
    if (n == 1 && m == 1) return 1;
    phase_.store(((phase >> 16) + 1) << 16 | uint64_t(m), std::memory_order_seq_cst);
    delay_at(Delay::opened, place);
    if (blocked_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> lock(sleep_mutex_); }
      go_on_.notify_all();
    }
    if (m > n) invite(m, next_op);       // else the next job may be under way already
    return m;
  }
  delay_at(Delay::after_arrival, place);
  for (int k = 0; k < kSpins; k++) {
    const uint64_t now = phase_.load(std::memory_order_acquire);
    if (now != phase) return threads_after(phase, now);
    pause_cpu();
  }
  // The thread that we wait for has lost its core: sleeping leaves it ours.
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  blocked_.fetch_add(1, std::memory_order_seq_cst);
  uint64_t now;
  go_on_.wait(lock, [&] { return (now = phase_.load(std::memory_order_seq_cst)) != phase; });
  blocked_.fetch_sub(1, std::memory_order_relaxed);
  return threads_after(phase, now);
}

// All threads have done their part of an op. A job counts as finished before its threads leave the barrier: one that is to go
// with it sees that it may.
void Pool::finish_op(size_t next_op) {
  if (job_.spent) {
    const uint64_t now = ticks();
    job_.spent[next_op - 1] += now - op_began_;
    op_began_ = now;
  }
  if (next_op != job_.count) return;
  finished_.fetch_add(1, std::memory_order_seq_cst);
  if (callers_asleep_.load(std::memory_order_seq_cst) == 0) return;
  { std::lock_guard<std::mutex> lock(sleep_mutex_); }
  done_.notify_all();
}

// ---- how many threads -------------------------------------------------------------------------------------------------------
// At a barrier where all n threads are: how many go on. All leave after the last op.
int Pool::judge(int n, size_t next_op) {
  if (next_op == job_.count) return n;
  if (n > 1 && adaptive_) {
    const uint64_t now = ticks();
    const double rate = ticks_per_ns();
    lasted_ += double(now - began_) * double(n);
    began_ = now;
    if (lasted_ > kWindowNs * rate * double(n)) waited_ *= 0.5, lasted_ *= 0.5;
    for (int i = 0; i < n; i++) {
      // signed: of two cores' clocks the one that is read later may be a little behind
      const double waited = double(int64_t(now - places_[size_t(i)].arrived.load(std::memory_order_relaxed)));
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

// After a while without them, all threads may take part again. True if that changed something.
bool Pool::take_back() {
  if (limit_ == size_ || nanoseconds() < retry_at_) return false;
  limit_ = size_;
  waited_ = lasted_ = 0;
  began_ = ticks();
  whole_since_ = nanoseconds();
  return true;
}

// Half of n threads go on: one of them waits too much for the others.
void Pool::give_up(int n) {
  limit_ = (n + 1) / 2;
  waited_ = lasted_ = 0;
  began_ = ticks();
  retry_at_ = nanoseconds() + hold_;
  hold_ = hold_ * 4 < kHoldMaxNs ? hold_ * 4 : kHoldMaxNs;
}

// ---- joining a job ------------------------------------------------------------------------------------------------------------
// Claims free threads for the places n, n + 1, ... up to limit_; returns how many threads there are with them.
int Pool::claim_from(int n) {
  const uint64_t job = finished() + 1;
  for (size_t i = 0; i < seats_.size() && n < limit_ && num_free_.load(std::memory_order_relaxed) > 0; i++) {
    if (!seats_[i].free.load(std::memory_order_acquire) || seats_[i].until.load(std::memory_order_relaxed) < job) continue;
    if (!retire(seats_[i])) continue;
    claimed_.push_back(int(i));
    n++;
  }
  return n;
}

// Those that were claimed are the last of the n threads that run the op `first_op`.
void Pool::invite(int n, size_t first_op) {
  first_op_ = first_op;
  int place = n - int(claimed_.size());
  for (const int i : claimed_) {
    auto& invitation = seats_[size_t(i)].invitation;
    const uint64_t number = (invitation.load(std::memory_order_relaxed) >> 32) + 1;
    invitation.store(number << 32 | uint64_t(place++) << 16 | uint64_t(n), std::memory_order_release);
  }
  claimed_.clear();
}

// Makes a free seat taken; false when another thread just did.
bool Pool::retire(Seat& seat) {
  bool is_free = true;
  if (!seat.free.compare_exchange_strong(is_free, false, std::memory_order_acq_rel)) return false;
  num_free_.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

bool Pool::has_work(int seat) const {
  return may_lead(seat) && !led_.load(std::memory_order_seq_cst) && finished() != submitted_.load(std::memory_order_seq_cst);
}

// Whether a job runs that has room for one more: its next barrier may be a long op away.
bool Pool::is_wanted() const {
  return led_.load(std::memory_order_seq_cst) && int(phase_.load(std::memory_order_seq_cst) & 0xffff) < limit_.load(std::memory_order_seq_cst);
}

// Spins for a while, giving way to others after the first moments, then sleeps. Returns the invitation, or 0 when there may be
// something else to do.
uint64_t Pool::wait_for_invitation(int seat, uint64_t until) {
  Seat& mine = seats_[size_t(seat)];
  const uint64_t seen = mine.invitation.load(std::memory_order_relaxed);
  mine.until.store(until, std::memory_order_relaxed);
  num_free_.fetch_add(1, std::memory_order_relaxed);
  mine.free.store(true, std::memory_order_release);
  const uint64_t begin = nanoseconds();
  for (int k = 0;; k++) {
    const uint64_t invitation = mine.invitation.load(std::memory_order_acquire);
    if (invitation != seen) return invitation;
    const bool leaves = stop_.load(std::memory_order_relaxed) || finished() >= until || has_work(seat);
    if (leaves && retire(mine)) return 0;
    pause_cpu();
    if (k % 64 != 63) continue;
    const uint64_t gone = nanoseconds() - begin;
    if (gone > uint64_t(spin_us_) * 1000 && !is_wanted() && retire(mine)) {
      sleep(seat, until);
      return 0;
    }
    if (gone > 20'000) sched_yield();
  }
}

// A worker sleeps until it could lead or join a job, the caller until its job is finished.
void Pool::sleep(int seat, uint64_t until) {
  std::unique_lock<std::mutex> lock(sleep_mutex_);
  auto& asleep = seat == 0 ? callers_asleep_ : sleeping_;
  asleep.fetch_add(1, std::memory_order_seq_cst);
  (seat == 0 ? done_ : wake_).wait(lock, [&] { return stop_.load() || finished_.load() >= until || has_work(seat) || (seat && is_wanted()); });
  asleep.fetch_sub(1, std::memory_order_relaxed);
}

// Wakes the threads that may take part.
void Pool::call() {
  if (sleeping_.load(std::memory_order_seq_cst) == 0) return;
  { std::lock_guard<std::mutex> lock(sleep_mutex_); }
  wake_.notify_all();
}
