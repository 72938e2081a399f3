// Products of rows that are lossless with activations, and sums of such rows.
#pragma once

#include <vector>

#include "dot_floats.h"
#include "lossless.h"

namespace moesaic {

#ifdef MOESAIC_AVX512
// Ask for what `rows` rows take, some way on from where a window of them is read now: here as they are
// read, since they come slower than the processor could ask for all of them at once.
template <int R>
MOESAIC_INLINE void fetch_window(const uint8_t* rows, int64_t window) {
  constexpr int64_t kAhead = 6144, kLine = 64;
  const uint8_t* from = rows + kAhead + window * 3 * kLine * R;
MOESAIC_UNROLL
  for (int line = 0; line < 3 * R; line++)
    _mm_prefetch(reinterpret_cast<const char*>(from + line * kLine), _MM_HINT_T0);
}

// A window of some rows with its others; the next window in which there are some.
template <int R>
__attribute__((noinline)) int64_t take_with_others(const Matrix& weight, int64_t index, int64_t window,
                                                   uint16_t (*values)[kWindow]) {
  int64_t next = INT64_MAX;
  for (int r = 0; r < R; r++) {
    const Lossless row(weight, index + r);
    row.take_apart(window, values[r], row.exponents());
    const int other = row.put_others(window, row.first_other(window), values[r]);
    next = std::min(next, row.window_of(other));
  }
  return next;
}

// Ask for the others of a row, if it has some.
MOESAIC_INLINE void fetch_others(const Lossless& row) {
  const void* from = row.head[1] ? static_cast<const void*>(row.others) : row.head;
  _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
}
#endif

// The same sums as of the bfloat16 values themselves, to the bit.
template <int R, int N>
inline void dot_lossless(const Matrix& weight, int64_t index, const Activation* const* x, float* out) {
#ifdef MOESAIC_AVX512
  constexpr int64_t kLater = 16;  // rows on, whose others are asked for
  const int64_t windows = Lossless::windows(weight.width);
  const uint8_t* first = weight.row(index);
  Lossless::Known exponents[R];
  __m512 sums[N][R];
  int64_t next = INT64_MAX;  // window in which a row has another exponent
MOESAIC_UNROLL
  for (int r = 0; r < R; r++) {
    const Lossless row(weight, index + r);
    exponents[r] = row.exponents();
    next = std::min(next, row.window_of(0));
    fetch_others(Lossless(weight, std::min(weight.rows - 1, index + r + kLater)));
MOESAIC_UNROLL
    for (int n = 0; n < N; n++) sums[n][r] = _mm512_setzero_ps();
  }
  auto add = [&](int r, int64_t i, auto... parts) {
    auto add_part = [&](__m512i part) {
MOESAIC_UNROLL
      for (int n = 0; n < N; n++)
        sums[n][r] = Floats<kBFloat16>::add(sums[n][r], part, _mm512_loadu_si512(x[n]->halves + i));
      i += kPart;
    };
    (add_part(parts), ...);
  };
  for (int64_t w = 0; w * kWindow < weight.width; w++) {
    fetch_window<R>(first, w);
    if (__builtin_expect(w == next, 0)) {
      alignas(64) uint16_t values[R][kWindow];
      next = take_with_others<R>(weight, index, w, values);
      for (int i = 0; i < (w == windows ? kHalf : kWindow); i += kPart)
MOESAIC_UNROLL
        for (int r = 0; r < R; r++) add(r, w * kWindow + i, _mm512_load_si512(values[r] + i));
    } else if (w == windows) {
MOESAIC_UNROLL
      for (int r = 0; r < R; r++) {
        __m512i parts[2];
        Lossless::take_half(first + r * weight.stride + w * 192, exponents[r], parts);
        add(r, w * kWindow, parts[0], parts[1]);
      }
    } else {
MOESAIC_UNROLL
      for (int r = 0; r < R; r++) {
        __m512i parts[4];
        Lossless::take(first + r * weight.stride + w * 192, exponents[r], parts);
        add(r, w * kWindow, parts[0], parts[1], parts[2], parts[3]);
      }
    }
  }
  put_sums<R, N>(sums, out);
#else
  thread_local std::vector<uint16_t> values;
  values.resize(size_t(Lossless::padded(weight.width)));
  Matrix row = weight;
  row.format = kBFloat16, row.stride = 0;
  for (int r = 0; r < R; r++) {
    Lossless(weight, index + r).take_apart(values.data());
    row.values = reinterpret_cast<const uint8_t*>(values.data());
    dot_floats<kBFloat16, 1, N>(row, 0, x, out + r);
  }
#endif
}

#ifdef MOESAIC_AVX512
// A window of what `add_rows` adds.
inline void add_window(const Matrix& weight, int64_t first, int count, int64_t window, const float* factors,
                       float* out) {
  constexpr int64_t kLater = 12;  // rows on, that are asked for: windows of rows do not follow each other
  __m512 sums[kWindow / 16];
MOESAIC_UNROLL
  for (int v = 0; v < kWindow / 16; v++) sums[v] = _mm512_loadu_ps(out + 16 * v);
  for (int n = 0; n < count; n++) {
    const Lossless row(weight, first + n);
    const uint8_t* from = row.window(window);
    for (int line = 0; line < 3; line++)
      _mm_prefetch(reinterpret_cast<const char*>(from + kLater * weight.stride + 64 * line), _MM_HINT_T0);
    __m512i parts[4];
    Lossless::take(from, row.exponents(), parts);
    if (__builtin_expect(row.head[1], 0)) {
      alignas(64) uint16_t values[kWindow];
      for (int p = 0; p < 4; p++) _mm512_store_si512(values + p * kPart, parts[p]);
      row.put_others(window, row.first_other(window), values);
      for (int p = 0; p < 4; p++) parts[p] = _mm512_load_si512(values + p * kPart);
    }
    const __m512 factor = _mm512_set1_ps(factors[n]);
MOESAIC_UNROLL
    for (int p = 0; p < 4; p++) {
      const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(parts[p]));
      const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(parts[p], 1));
      sums[2 * p] = _mm512_fmadd_ps(factor, _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)), sums[2 * p]);
      sums[2 * p + 1] =
          _mm512_fmadd_ps(factor, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)), sums[2 * p + 1]);
    }
  }
MOESAIC_UNROLL
  for (int v = 0; v < kWindow / 16; v++) _mm512_storeu_ps(out + 16 * v, sums[v]);
}
#endif

}  // namespace moesaic
