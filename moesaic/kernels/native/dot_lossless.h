// Products of rows that are lossless with activations, and sums of such rows.
#pragma once

#include <vector>

#include "dot_floats.h"
#include "lossless.h"

namespace moesaic {

#ifdef MOESAIC_AVX512
// Some rows of a weight that is lossless.
template <int R>
struct LosslessRows {
  const Matrix& weight;
  const int64_t index;
  const uint8_t* first;  // window of the first row
  Lossless::Known exponents[R];
  int64_t next = INT64_MAX;  // window in which a row has another exponent

  LosslessRows(const Matrix& of, int64_t from)
      : weight(of), index(from), first(of.row(from)) {
MOESAIC_UNROLL
    for (int r = 0; r < R; r++) {
      const Lossless row(weight, index + r);
      exponents[r] = row.exponents();
      next = std::min(next, row.window_of(0));
      const Lossless later(weight, std::min(weight.rows - 1, index + r + kAfter));
      _mm_prefetch(later.head[1] ? reinterpret_cast<const char*>(later.others)
                                 : reinterpret_cast<const char*>(row.head),
                   _MM_HINT_T0);
    }
  }

  void fetch(int64_t window) const {
    const uint8_t* ahead = first + kAhead + window * 192 * R;
MOESAIC_UNROLL
    for (int line = 0; line < 3 * R; line++)
      _mm_prefetch(reinterpret_cast<const char*>(ahead + 64 * line), _MM_HINT_T0);
  }
  static constexpr int64_t kAfter = 16, kAhead = 10240;

  template <int P>
  void part(int64_t window, __m512i (&out)[R]) const {
MOESAIC_UNROLL
    for (int r = 0; r < R; r++)
      out[r] = Lossless::part<P>(first + window * 192 + r * weight.stride, exponents[r]);
  }
  template <int P>
  void part_of_half(int64_t window, __m512i (&out)[R]) const {
MOESAIC_UNROLL
    for (int r = 0; r < R; r++)
      out[r] = Lossless::part_of_half<P>(first + window * 192 + r * weight.stride, exponents[r]);
  }

  // The window `next` with its others.
  void take_next(uint16_t (*values)[kWindow]) {
    const int64_t window = next;
    next = INT64_MAX;
    for (int r = 0; r < R; r++) {
      const Lossless row(weight, index + r);
      row.take_apart(window, values[r], exponents[r]);
      next = std::min(next, row.window_of(row.put_others(window, row.first_other(window), values[r])));
    }
  }
};
#endif

// The same sums as of the bfloat16 values themselves, to the bit.
template <int R, int N>
inline void dot_lossless(const Matrix& weight, int64_t index, const Activation* const* x, float* out) {
#ifdef MOESAIC_AVX512
  LosslessRows<R> rows(weight, index);
  __m512 sums[N][R];
  __m512i parts[R];
MOESAIC_UNROLL
  for (int n = 0; n < N; n++)
MOESAIC_UNROLL
    for (int r = 0; r < R; r++) sums[n][r] = _mm512_setzero_ps();
  auto add = [&](int64_t i) {
MOESAIC_UNROLL
    for (int n = 0; n < N; n++) {
      const __m512i other = _mm512_loadu_si512(x[n]->halves + i);
MOESAIC_UNROLL
      for (int r = 0; r < R; r++) sums[n][r] = Floats<kBFloat16>::add(sums[n][r], parts[r], other);
    }
  };
  const int64_t windows = Lossless::windows(weight.width);
  for (int64_t w = 0; w * kWindow < weight.width; w++) {
    const int64_t i = w * kWindow;
    rows.fetch(w);
    if (__builtin_expect(w == rows.next, 0)) {
      alignas(64) uint16_t values[R][kWindow];
      rows.take_next(values);
      for (int at = 0; at < (w == windows ? kHalf : kWindow); at += kPart) {
MOESAIC_UNROLL
        for (int r = 0; r < R; r++) parts[r] = _mm512_load_si512(values[r] + at);
        add(i + at);
      }
    } else if (w == windows) {
      rows.template part_of_half<0>(w, parts), add(i);
      rows.template part_of_half<1>(w, parts), add(i + kPart);
    } else {
      rows.template part<0>(w, parts), add(i);
      rows.template part<1>(w, parts), add(i + kPart);
      rows.template part<2>(w, parts), add(i + 2 * kPart);
      rows.template part<3>(w, parts), add(i + 3 * kPart);
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
  __m512 sums[kWindow / 16];
MOESAIC_UNROLL
  for (int v = 0; v < kWindow / 16; v++) sums[v] = _mm512_loadu_ps(out + 16 * v);
  for (int n = 0; n < count; n++) {
    const Lossless row(weight, first + n);
    const __m512 factor = _mm512_set1_ps(factors[n]);
    alignas(64) uint16_t values[kWindow];
    row.take_apart(window, values, row.exponents());
    if (row.head[1]) row.put_others(window, row.first_other(window), values);
MOESAIC_UNROLL
    for (int v = 0; v < kWindow / 16; v++) {
      __m256i halves = _mm256_load_si256(reinterpret_cast<const __m256i*>(values + 16 * v));
      __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
      sums[v] = _mm512_fmadd_ps(factor, _mm512_castsi512_ps(wide), sums[v]);
    }
  }
MOESAIC_UNROLL
  for (int v = 0; v < kWindow / 16; v++) _mm512_storeu_ps(out + 16 * v, sums[v]);
}
#endif

}  // namespace moesaic
