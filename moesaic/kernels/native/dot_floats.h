// Products of rows of floats with activations.
#pragma once

#include "matrix.h"

namespace moesaic {

// Loops over what is known when this is compiled: without it, sums do not stay in registers.
#define MOESAIC_UNROLL _Pragma("GCC unroll 8")

constexpr int kRows = 4;  // rows of a weight that are multiplied together
constexpr int kTile = 4;  // activations they are multiplied by before the next are read

#ifdef MOESAIC_AVX512
// The sums of four vectors.
inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  __m512 all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

template <int R, int N>
inline void put_sums(const __m512 (*sums)[R], float* out) {
  const __m512 none = _mm512_setzero_ps();
MOESAIC_UNROLL
  for (int n = 0; n < N; n++) {
    if (R == kRows) {
      _mm_storeu_ps(out + n * kRows, sums_of(sums[n][0], sums[n][R > 1], sums[n][R > 2 ? 2 : 0],
                                             sums[n][R > 3 ? 3 : 0]));
    } else {
MOESAIC_UNROLL
      for (int r = 0; r < R; r++)
        out[n * kRows + r] = _mm_cvtss_f32(sums_of(sums[n][r], none, none, none));
    }
  }
}
#endif

// Rows of floats: their type, and what of an activation they meet.
template <int32_t F>
struct Floats;

template <>
struct Floats<kFloat32> {
  using Value = float;
  static const float* of(const Activation& x) { return x.values; }
  static float wide(float value) { return value; }
#ifdef MOESAIC_AVX512
  static constexpr int kStep = 16;
  static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 load(const float* from, int left) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << left) - 1), from);
  }
  static __m512 add(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }
#endif
};
template <>
struct Floats<kBFloat16> {
  using Value = uint16_t;
  static const uint16_t* of(const Activation& x) { return x.halves; }
  static float wide(uint16_t value) { return widen(value); }
#ifdef MOESAIC_AVX512
  static constexpr int kStep = 32;
  static __m512i load(const uint16_t* from) { return _mm512_loadu_si512(from); }
  static __m512i load(const uint16_t* from, int left) {
    return _mm512_maskz_loadu_epi16((1u << left) - 1, from);
  }
  static __m512 add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
#endif
};

// Each of these multiplies R rows, from one on, with N activations: what row r gives for x[n] goes to
// out[n · kRows + r].
template <int32_t F, int R, int N>
inline void dot_floats(const Matrix& weight, int64_t index, const Activation* const* x, float* out) {
  using Value = typename Floats<F>::Value;
  const int width = weight.width;
  const Value* rows[R];
  for (int r = 0; r < R; r++) rows[r] = reinterpret_cast<const Value*>(weight.row(index + r));
#ifdef MOESAIC_AVX512
  __m512 sums[N][R];
MOESAIC_UNROLL
  for (int n = 0; n < N; n++)
MOESAIC_UNROLL
    for (int r = 0; r < R; r++) sums[n][r] = _mm512_setzero_ps();
  auto add = [&](int i, auto load) {
    decltype(load(rows[0])) parts[R];
MOESAIC_UNROLL
    for (int r = 0; r < R; r++) parts[r] = load(rows[r] + i);
MOESAIC_UNROLL
    for (int n = 0; n < N; n++) {
      auto other = Floats<F>::load(Floats<F>::of(*x[n]) + i);
MOESAIC_UNROLL
      for (int r = 0; r < R; r++) sums[n][r] = Floats<F>::add(sums[n][r], parts[r], other);
    }
  };
  int i = 0;
  for (; i + Floats<F>::kStep <= width; i += Floats<F>::kStep)
    add(i, [](const Value* from) { return Floats<F>::load(from); });
  if (i < width) add(i, [=](const Value* from) { return Floats<F>::load(from, width - i); });
  put_sums<R, N>(sums, out);
#else
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) {
      const Value* other = Floats<F>::of(*x[n]);
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int i = 0; i < width; i++) sum += Floats<F>::wide(rows[r][i]) * Floats<F>::wide(other[i]);
      out[n * kRows + r] = sum;
    }
#endif
}

}  // namespace moesaic
