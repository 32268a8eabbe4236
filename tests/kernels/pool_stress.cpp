// The thread pool alone, under delays at its worst moments: every unit of work is done once, in the order of the ops, by a thread
// that has its place to itself, and the results have the same bits as one thread's.
//
//     c++ -std=c++17 -O1 -pthread -DPOOL_DELAYS -Icsrc tests/kernels/pool_stress.cpp csrc/pool.cpp csrc/delays.cpp -o pool_stress
//     ./pool_stress [seconds for random delays]
#include "pool.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <sys/wait.h>
#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kUnits = 24, kFloats = 64;

std::atomic<int> faults{0};

void fault(const char* what) {
  if (faults.fetch_add(1) < 10) std::fprintf(stderr, "FAULT: %s\n", what);
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

void spin(int us) {
  for (const auto end = Clock::now() + std::chrono::microseconds(us); Clock::now() < end;) {}
}

// ---- a job whose op i reads what op i - 1 wrote ---------------------------------------------------------------------------------
struct Program {
  struct Step {
    Program* program;
    int index, us;
  };
  std::vector<float> rows;             // [op + 1][kUnits][kFloats]
  std::vector<std::atomic<int>> done;  // units of each op
  std::atomic<int> busy[kMaxThreads] = {};
  std::atomic<int> largest{0};         // threads that ran an op
  std::vector<Op> ops;

  Program(int count, int us) : rows(size_t(count + 1) * kUnits * kFloats), done(size_t(count)) {
    for (size_t i = 0; i < size_t(kUnits) * kFloats; i++) rows[i] = float(i % 97) * 0.37f;
    for (int i = 0; i < count; i++) ops.push_back(make_op("step", &run, Step{this, i, us}));
  }
  float* row(int op, int unit) { return rows.data() + (size_t(op) * kUnits + size_t(unit)) * kFloats; }
  bool complete() const {
    for (const auto& n : done)
      if (n.load() != kUnits) return false;
    return true;
  }

  // A unit goes through the scratch of the thread's place, which nobody else may touch meanwhile.
  void unit(int i, int u, int us, float* scratch) {
    const float* from = row(i, (7 * u + 1) % kUnits);
    for (int k = 0; k < kFloats; k++) scratch[k] = from[k];
    spin(us);
    float sum = 0;
    for (int k = 0; k < kFloats; k++) sum = sum * 0.5f + scratch[k];
    float* to = row(i + 1, u);
    for (int k = 0; k < kFloats; k++) to[k] = scratch[k] * 0.75f + sum * float(u - k) * 0.01f;
    done[size_t(i)].fetch_add(1);
  }
  static void run(const void* args, const Ctx& c) {
    const auto& step = *static_cast<const Step*>(args);
    Program& p = *step.program;
    if (c.tid >= c.n || c.n > c.size) fault("a place that is not there");
    if (p.busy[c.tid].exchange(1)) fault("two threads have one place");
    if (step.index > 0 && p.done[size_t(step.index) - 1].load() != kUnits) fault("an op began before the one before it ended");
    for (int seen = p.largest.load(); c.n > seen && !p.largest.compare_exchange_weak(seen, c.n);) {}
    for (int u; (u = c.take()) < kUnits;) p.unit(step.index, u, step.us, reinterpret_cast<float*>(c.scratch));
    p.busy[c.tid].store(0);
  }
};

const std::vector<float>& expected(int count) {
  static std::mutex mutex;
  static std::vector<std::vector<float>> known(1025);
  std::lock_guard<std::mutex> lock(mutex);
  auto& rows = known[size_t(count)];
  if (rows.empty()) {
    Program one(count, 0);
    Pool(1, 0, false).run(one.ops.data(), one.ops.size());
    rows = one.rows;
  }
  return rows;
}

void check(const Program& p) {
  if (!p.complete()) fault("units are missing or were done twice");
  const auto& want = expected(int(p.ops.size()));
  if (std::memcmp(want.data(), p.rows.data(), want.size() * sizeof(float))) fault("the results differ from one thread's");
}

// ---- a thread that was given up and sleeps until its place is another's ------------------------------------------------------------
std::atomic<int> slow_place{-1}, late_place{-1};
std::atomic<bool> slow{false};         // the thread at slow_place has yet to arrive
std::atomic<int> late{0};              // 1: the other sleeps, 2: somebody else has its place, 3: it is back

// The thread at slow_place comes late to a barrier, so that half of them are given up there; the one at late_place has arrived
// and sleeps through it, until its place is taken.
void oversleep(Delay at, int place) {
  if (at == Delay::before_arrival && place == slow_place.load() && late.load() == 0) {
    slow.store(true);
    sleep_ms(10);
    slow.store(false);
  }
  if (at == Delay::before_arrival && place == late_place.load()) {
    int asleep = 1;
    late.compare_exchange_strong(asleep, 2);
  }
  int none = 0;
  if (at == Delay::after_arrival && place == late_place.load() && slow.load() && late.compare_exchange_strong(none, 1)) {
    for (int i = 0; i < 3000 && late.load() == 1; i++) sleep_ms(1);
    late.store(late.load() == 2 ? 3 : 0);
  }
}

void one_oversleeps(int threads) {
  Pool pool(threads, 300, false);
  pool.set_adaptive(false);
  Program all(8, 20);
  pool.run(all.ops.data(), all.ops.size());                // all threads are there
  check(all);
  pool.set_adaptive(true);
  late = 0, slow_place = threads - 1, late_place = (threads + 1) / 2;
  set_delays(&oversleep);
  for (const auto end = Clock::now() + std::chrono::seconds(4); late < 3 && Clock::now() < end;) {
    Program p(1024, 5);
    pool.run(p.ops.data(), p.ops.size());
    check(p);
  }
  for (int i = 0; i < 3; i++) {        // it is back
    Program p(1024, 2);
    pool.run(p.ops.data(), p.ops.size());
    check(p);
  }
  set_delays(nullptr);
  if (late.exchange(2) < 2) std::fprintf(stderr, "with %d threads none overslept: the machine is too busy to tell\n", threads);
}

// ---- delays at random ---------------------------------------------------------------------------------------------------------------
void at_random(Delay, int) {
  thread_local std::minstd_rand random(unsigned(std::hash<std::thread::id>()(std::this_thread::get_id())));
  const unsigned n = random();
  if (n % 997 == 0) sleep_ms(20);      // longer than threads stay given up here
  else if (n % 31 == 0) sleep_ms(1);
  else if (n % 7 == 0) std::this_thread::yield();
}

// Jobs of all lengths, some on their way at once, asked for by two threads.
void many_jobs(int threads, bool ahead, double seconds, unsigned seed) {
  Pool pool(threads, int(seed % 3) * 100, ahead);
  set_delays(&at_random);
  auto caller = [&](unsigned number) {
    std::minstd_rand random(seed * 2 + number);
    for (const auto end = Clock::now() + std::chrono::duration<double>(seconds); Clock::now() < end;) {
      std::deque<Program> programs;
      std::vector<uint64_t> jobs;
      for (unsigned i = 0, n = 1 + unsigned(random()) % 4; i < n; i++) {
        auto& p = programs.emplace_back(1 + int(random() % 60), int(random() % 3) * 4);
        jobs.push_back(pool.submit(p.ops.data(), p.ops.size()));
        if (random() % 4 == 0) pool.set_adaptive(random() % 8 != 0);
        if (random() % 3 == 0) sleep_ms(int(random() % 2));
      }
      for (size_t i = jobs.size(); i-- > 0;) pool.wait(jobs[i]);
      for (auto& p : programs) check(p);
    }
  };
  std::thread other(caller, 1);
  caller(0);
  other.join();
  set_delays(nullptr);
}

// ---- the end ---------------------------------------------------------------------------------------------------------------------------
void dropped_with_jobs(int threads, bool ahead) {
  set_delays(&at_random);
  std::deque<Program> programs;
  {
    Pool pool(threads, 50, ahead);
    for (int i = 0; i < 4; i++) {
      auto& p = programs.emplace_back(20, 5);
      pool.submit(p.ops.data(), p.ops.size());
    }
  }
  for (auto& p : programs) check(p);
  set_delays(nullptr);
}

// The thread sanitizer knows no threads of a child whose parent had some.
#if defined(__SANITIZE_THREAD__)
constexpr bool kChildHasThreads = false;
#else
constexpr bool kChildHasThreads = true;
#endif

// The child leaves the pool as it is and makes one of its own.
void forked(int threads, bool ahead) {
  Pool pool(threads, 50, ahead);
  Program before(200, 20);
  const uint64_t job = pool.submit(before.ops.data(), before.ops.size());
  const pid_t child = fork();
  if (child == 0) {
    if (!pool.forked()) fault("a child that takes the pool for its own");
    Program p(20, 5);
    Pool(kChildHasThreads ? threads : 1, 50, kChildHasThreads && ahead, pool.submitted()).run(p.ops.data(), p.ops.size());
    check(p);
    std::_Exit(faults.load() ? 1 : 0);
  }
  pool.wait(job);
  check(before);
  int status = 0;
  for (int i = 0; i < 3000 && waitpid(child, &status, WNOHANG) == 0; i++) sleep_ms(10);
  if (!WIFEXITED(status) || WEXITSTATUS(status)) fault("a forked child failed");
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0.2;
  set_delays(nullptr);
  for (const int threads : {4, 5, 8}) one_oversleeps(threads);
  for (int threads = 1; threads <= 8; threads++)
    for (const bool ahead : {false, true}) {
      many_jobs(threads, ahead, seconds, unsigned(threads) * 2 + ahead);
      dropped_with_jobs(threads, ahead);
      forked(threads, ahead);
    }
  std::printf("%d faults\n", faults.load());
  return faults.load() ? 1 : 0;
}
