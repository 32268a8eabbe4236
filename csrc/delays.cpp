#include "delays.h"

#if defined(POOL_DELAYS)
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

namespace {

// Mostly nothing, sometimes a time slice, rarely longer than threads stay given up in such a build.
void at_random(Delay, int) {
  thread_local std::minstd_rand random(unsigned(std::hash<std::thread::id>()(std::this_thread::get_id())));
  const unsigned n = random();
  if (n % 4001 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  else if (n % 101 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

std::atomic<DelayFn> delays{&at_random};

}  // namespace

void set_delays(DelayFn fn) { delays.store(fn); }

void delay_at(Delay at, int place) {
  if (const DelayFn fn = delays.load(std::memory_order_acquire)) fn(at, place);
}
#endif
