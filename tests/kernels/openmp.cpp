// The functions of OpenMP that the compiled kernels call, over threads that the checker of races sees:
// it knows nothing of how those of the compiler's own library wait for each other. Of loops whose parts
// are handed out there may be one in a parallel region.
#include <pthread.h>

#include <mutex>
#include <thread>
#include <vector>

#define OURS extern "C" __attribute__((visibility("hidden")))

namespace {
struct Team {
  int threads;
  pthread_barrier_t barrier;
  std::mutex mutex;
  bool has_begun = false;
  long next = 0, end = 0, step = 0;
};
thread_local Team* team = nullptr;
thread_local int member = 0;

bool take(long* first, long* last) {
  std::lock_guard<std::mutex> lock(team->mutex);
  if (team->next >= team->end) return false;
  *first = team->next;
  *last = team->next = std::min(team->end, team->next + team->step);
  return true;
}
}  // namespace

OURS int omp_get_thread_num() { return member; }
OURS int omp_get_num_threads() { return team ? team->threads : 1; }
OURS void GOMP_barrier() {
  if (team) pthread_barrier_wait(&team->barrier);
}

OURS void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned) {
  Team made{int(threads)};
  pthread_barrier_init(&made.barrier, nullptr, threads);
  auto begin = [&](int index) {
    team = &made, member = index;
    work(data);
    team = nullptr, member = 0;
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; i++) others.emplace_back(begin, int(i));
  begin(0);
  for (std::thread& each : others) each.join();
  pthread_barrier_destroy(&made.barrier);
}

OURS bool GOMP_loop_nonmonotonic_dynamic_start(long begin, long end, long step, long chunk, long* first,
                                               long* last) {
  {
    std::lock_guard<std::mutex> lock(team->mutex);
    if (!team->has_begun) team->next = begin, team->end = end, team->step = step * chunk;
    team->has_begun = true;
  }
  return take(first, last);
}
OURS bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) { return take(first, last); }
OURS void GOMP_loop_end_nowait() {}
