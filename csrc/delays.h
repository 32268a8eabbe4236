// Where a thread of the pool may lose its core at the worst moment. With POOL_DELAYS, which only tests define, a function of theirs is
// called there and may sleep (delays.cpp); otherwise nothing is.
#pragma once

enum class Delay { invited, before_arrival, after_arrival, opened };

#if defined(POOL_DELAYS)
using DelayFn = void (*)(Delay, int place);
void set_delays(DelayFn);              // null: none. At the start: a few, at random
void delay_at(Delay, int place);
#else
inline void delay_at(Delay, int) {}
#endif
