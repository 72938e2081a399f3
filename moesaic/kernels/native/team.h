// Threads that work on one step together, and meet between its parts.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dot.h"

namespace moesaic {

// Waiting costs less than a microsecond while every thread has a core of its own; a thread that
// waits longer lets others run.
class Barrier {
 public:
  void expect(int threads) { threads_ = threads; }

  void wait() {
    int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.fetch_add(1, std::memory_order_acq_rel);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
      if (spins < kSpins) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 20000;
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  int threads_ = 1;
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

// One of the threads.
struct Member {
  int index;
  int threads;
  Barrier* barrier;

  void meet() const { barrier->wait(); }
  int64_t begin(int64_t count) const { return count * index / threads; }
  int64_t end(int64_t count) const { return count * (index + 1) / threads; }

  // How many of a few rows from one on are this thread's.
  int rows(int64_t count, int64_t from) const { return int(std::min<int64_t>(kRows, end(count) - from)); }
};

}  // namespace moesaic
