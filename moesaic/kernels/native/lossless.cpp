// bfloat16 values into 12 bits each.
#include "lossless.h"

#include <omp.h>

#include <atomic>

// Write the rows of a weight: bfloat16 values, `step` of them from a row to the next. Returns a row whose
// values do not fit, or -1.
extern "C" int64_t moesaic_put_lossless(const moesaic::Matrix* to, const uint16_t* from, int64_t step,
                                        int32_t threads) {
  std::atomic<int64_t> failed{-1};
#pragma omp parallel for num_threads(threads)
  for (int64_t i = 0; i < to->rows; i++)
    if (!moesaic::Lossless(*to, i).put(from + i * step)) failed = i;
  return failed;
}
