// Products of the rows of a weight with activations, for weights in six formats.
//
// Four rows meet up to four activations at a time. What a row gives for an activation does not
// depend on what else is multiplied. Sums are float32. Integer weights meet integer activations:
// those are rounded to 8 bits with one scale per group, as the weights are.
#pragma once

#include <array>

#include "dot_floats.h"
#include "dot_lossless.h"

namespace moesaic {

// The 8-bit floats without sign as bfloat16: 4 bits of exponent, 3 of mantissa, no infinity.
inline const std::array<uint16_t, 128>& float8_magnitudes() {
  static const std::array<uint16_t, 128> found = [] {
    std::array<uint16_t, 128> table;
    for (int i = 0; i < 128; i++) {
      int exponent = i >> 3, mantissa = i & 7;
      float value = exponent ? std::ldexp(1.0f + mantissa / 8.0f, exponent - 7)
                             : std::ldexp(mantissa / 8.0f, -6);
      table[i] = i == 127 ? 0x7fc0 : narrow(value);
    }
    return table;
  }();
  return found;
}

template <int N>
inline void dot_float8(const Matrix& weight, int64_t index, const Activation* const* x, float* out) {
  const uint8_t* row = weight.row(index);
  const float* scales = weight.row_blocks(index);
  const int width = weight.width;
  const uint16_t* table = float8_magnitudes().data();
#ifdef MOESAIC_AVX512
  __m512i part[4];
  for (int i = 0; i < 4; i++) part[i] = _mm512_loadu_si512(table + 32 * i);
  __m512 sums[N];
MOESAIC_UNROLL
  for (int n = 0; n < N; n++) sums[n] = _mm512_setzero_ps();
  for (int start = 0; start < width; start += kBlock, scales++) {
    __m512 inside[N];
MOESAIC_UNROLL
    for (int n = 0; n < N; n++) inside[n] = _mm512_setzero_ps();
    for (int i = start; i < std::min(width, start + kBlock); i += 32) {
      __mmask32 there = width - i >= 32 ? 0xffffffffu : (1u << (width - i)) - 1;
      __m512i codes = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, row + i));
      __m512i low = _mm512_permutex2var_epi16(part[0], codes, part[1]);
      __m512i high = _mm512_permutex2var_epi16(part[2], codes, part[3]);
      __mmask32 is_high = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(0x40));
      __m512i sign = _mm512_slli_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(0x80)), 8);
      __m512i values = _mm512_or_si512(_mm512_mask_blend_epi16(is_high, low, high), sign);
MOESAIC_UNROLL
      for (int n = 0; n < N; n++)
        inside[n] = _mm512_dpbf16_ps(inside[n], (__m512bh)values,
                                     (__m512bh)_mm512_loadu_si512(x[n]->halves + i));
    }
MOESAIC_UNROLL
    for (int n = 0; n < N; n++)
      sums[n] = _mm512_fmadd_ps(inside[n], _mm512_set1_ps(*scales), sums[n]);
  }
MOESAIC_UNROLL
  for (int n = 0; n < N; n++) out[n * kRows] = _mm512_reduce_add_ps(sums[n]);
#else
MOESAIC_UNROLL
  for (int n = 0; n < N; n++) {
    float sum = 0.0f;
    for (int i = 0; i < width; i++) {
      float value = widen(table[row[i] & 127] | uint16_t((row[i] & 128) << 8));
      sum += value * scales[i / kBlock] * widen(x[n]->halves[i]);
    }
    out[n * kRows] = sum;
  }
#endif
}

// Codes as bytes from 0 up, what was added to make them so, and how many groups are multiplied at a
// time: 64 bytes of a row.
template <int32_t F>
struct Codes;

#ifdef MOESAIC_AVX512
template <>
struct Codes<kInt8> {
  static constexpr int kGroups = 1;
  static constexpr float kOffset = 128.0f;
  static __m512i times(__m512i codes, const int8_t* other) {
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, _mm512_loadu_si512(other));
  }
  static __m512i group_of_lane() { return _mm512_setzero_si512(); }
};
template <>
struct Codes<kInt4> {
  static constexpr int kGroups = 2;
  static constexpr float kOffset = 8.0f;
  static __m512i times(__m512i codes, const int8_t* other) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i first = _mm512_and_si512(codes, low);
    __m512i second = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
    __m512i found = _mm512_setzero_si512();
    found = _mm512_dpbusd_epi32(found, first, _mm512_loadu_si512(other));
    return _mm512_dpbusd_epi32(found, second, _mm512_loadu_si512(other + kGroup));
  }
  static __m512i group_of_lane() {
    return _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  }
};

// What is read beyond the end of a row meets codes or scales that are 0. Only at the end of the
// weight is it left out, because the processor does not foresee what masked reads will need.
template <int32_t F, int R, int N>
inline void dot_codes(const Matrix& weight, int64_t index, const Activation* const* x, float* out) {
  constexpr int kScales = 16;  // of groups that are multiplied by those of the activations at once
  const int groups = int(weight.groups());
  const int64_t after = weight.rows - index - R;
  const bool is_inside = after * groups >= kScales;
  __m512 sums[N][R], joint[N][R];
MOESAIC_UNROLL
  for (int n = 0; n < N; n++)
MOESAIC_UNROLL
    for (int r = 0; r < R; r++) sums[n][r] = _mm512_setzero_ps();
  for (int start = 0; start < groups; start += kScales) {
    const int count = std::min(kScales, groups - start);
    const __mmask16 inside = __mmask16((1u << count) - 1);
MOESAIC_UNROLL
    for (int r = 0; r < R; r++) {
      const void* from = weight.row_scales(index + r) + start;
      __m256i halves = is_inside ? _mm256_loadu_si256(static_cast<const __m256i*>(from))
                                 : _mm256_maskz_loadu_epi16(inside, from);
      __m512i wide = _mm512_maskz_cvtepu16_epi32(inside, halves);
      __m512 scales = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
MOESAIC_UNROLL
      for (int n = 0; n < N; n++) {
        joint[n][r] = _mm512_mul_ps(scales, _mm512_maskz_loadu_ps(inside, x[n]->scales + start));
        __m512 added = _mm512_mul_ps(_mm512_set1_ps(Codes<F>::kOffset),
                                     _mm512_maskz_loadu_ps(inside, x[n]->sums + start));
        sums[n][r] = _mm512_fnmadd_ps(joint[n][r], added, sums[n][r]);
      }
    }
    for (int g = 0; g < count; g += Codes<F>::kGroups) {
      const __m512i group = _mm512_add_epi32(_mm512_set1_epi32(g), Codes<F>::group_of_lane());
      const uint8_t* from = weight.row(index) + (start + g) / Codes<F>::kGroups * 64;
      __m512i codes[R];
      if (is_inside || g + Codes<F>::kGroups <= count) {
MOESAIC_UNROLL
        for (int r = 0; r < R; r++) codes[r] = _mm512_loadu_si512(from + r * weight.stride);
      } else {
MOESAIC_UNROLL
        for (int r = 0; r < R; r++)
          codes[r] = _mm512_maskz_loadu_epi64(0x0f, from + r * weight.stride);
      }
MOESAIC_UNROLL
      for (int n = 0; n < N; n++)
MOESAIC_UNROLL
        for (int r = 0; r < R; r++) {
          __m512i products = Codes<F>::times(codes[r], x[n]->codes + int64_t(start + g) * kGroup);
          sums[n][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products),
                                       _mm512_permutexvar_ps(group, joint[n][r]), sums[n][r]);
        }
    }
  }
  put_sums<R, N>(sums, out);
}
#else
template <>
struct Codes<kInt8> {
  static constexpr float kOffset = 128.0f;
  static int at(const uint8_t* row, int64_t i) { return row[i]; }
};
template <>
struct Codes<kInt4> {
  static constexpr float kOffset = 8.0f;
  static int at(const uint8_t* row, int64_t i) { return row[i / 2] >> (i % 2 * 4) & 15; }
};

// What makes codes positive is taken off a whole group: with it in the loop, GCC 12 makes wrong sums
// for processors that multiply bytes without a sign with bytes that have one.
template <int32_t F, int R, int N>
inline void dot_codes(const Matrix& weight, int64_t index, const Activation* const* x, float* out) {
MOESAIC_UNROLL
  for (int r = 0; r < R; r++)
MOESAIC_UNROLL
    for (int n = 0; n < N; n++) {
      const uint8_t* row = weight.row(index + r);
      const uint16_t* scales = weight.row_scales(index + r);
      float sum = 0.0f;
      for (int64_t g = 0; g < weight.groups(); g++) {
        int products = 0;
        for (int i = 0; i < kGroup; i++) {
          const int64_t place = Activation::place(g, i, F == kInt4);
          products += Codes<F>::at(row, g * kGroup + i) * x[n]->codes[place];
        }
        const float signed_products = float(products) - Codes<F>::kOffset * x[n]->sums[g];
        sum += widen(scales[g]) * x[n]->scales[g] * signed_products;
      }
      out[n * kRows + r] = sum;
    }
}
#endif

template <int R, int N>
inline void dot(const Matrix& weight, int64_t index, const Activation* const* x, float* out) {
  switch (weight.format) {
    case kFloat32:
      return dot_floats<kFloat32, R, N>(weight, index, x, out);
    case kBFloat16:
      return dot_floats<kBFloat16, R, N>(weight, index, x, out);
    case kInt8:
      return dot_codes<kInt8, R, N>(weight, index, x, out);
    case kLossless:
      return dot_lossless<R, N>(weight, index, x, out);
    case kFloat8:
      for (int r = 0; r < R; r++) dot_float8<N>(weight, index + r, x, out + r);
      return;
    default:
      return dot_codes<kInt4, R, N>(weight, index, x, out);
  }
}

template <int N>
inline void dot_some(const Matrix& weight, int64_t index, int rows, const Activation* const* x,
                     float* out) {
  if (rows == kRows) return dot<kRows, N>(weight, index, x, out);
  for (int r = 0; r < rows; r++) dot<1, N>(weight, index + r, x, out + r);
}

// Up to four rows of a weight times any number of activations: what row r gives for x[i] goes to
// out[i · kRows + r].
inline void dot_all(const Matrix& weight, int64_t index, int rows, const Activation* const* x, int count,
                    float* out) {
  for (int i = 0; i < count; i += kTile) {
    float* to = out + i * kRows;
    switch (count - i) {
      case 1: return dot_some<1>(weight, index, rows, x + i, to);
      case 2: return dot_some<2>(weight, index, rows, x + i, to);
      case 3: return dot_some<3>(weight, index, rows, x + i, to);
      default: dot_some<kTile>(weight, index, rows, x + i, to);
    }
  }
}

// Ask for what four rows of a weight take, some way on from where rows are read now but before row
// `end`: the processor foresees single rows, not four at a time.
MOESAIC_INLINE void fetch_ahead(const Matrix& weight, int64_t index, int64_t end) {
#ifdef MOESAIC_AVX512
  if (weight.format == kLossless) return;  // its rows do so while they are read
  constexpr int64_t kAhead = 6144, kLine = 64;
  const uint8_t* from = weight.row(index) + kAhead;
  const uint8_t* to = std::min(from + kRows * weight.stride, weight.row(end));
  for (; from < to; from += kLine) _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
#endif
}

// out += Σ factor · row of some rows of a weight that is one of floats.
inline void add_rows(const Matrix& weight, int64_t first, int count, const float* factors, float* out) {
  int c = 0;
#ifdef MOESAIC_AVX512
  for (; weight.format == kLossless && c + kWindow <= weight.width; c += kWindow)
    add_window(weight, first, count, c / kWindow, factors, out + c);
  constexpr int kWide = 8;         // vectors of sums that stay in registers
  constexpr int64_t kLater = 12;  // rows on, that are asked for: parts of rows do not follow each other
  for (; weight.format == kBFloat16 && c + 16 * kWide <= weight.width; c += 16 * kWide) {
    __m512 sums[kWide];
MOESAIC_UNROLL
    for (int v = 0; v < kWide; v++) sums[v] = _mm512_loadu_ps(out + c + 16 * v);
    for (int n = 0; n < count; n++) {
      const uint16_t* row = reinterpret_cast<const uint16_t*>(weight.row(first + n)) + c;
      for (int line = 0; line < 4; line++)
        _mm_prefetch(reinterpret_cast<const char*>(row) + kLater * weight.stride + 64 * line, _MM_HINT_T0);
      const __m512 factor = _mm512_set1_ps(factors[n]);
MOESAIC_UNROLL
      for (int v = 0; v < kWide; v++) {
        __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 16 * v));
        __m512i values = _mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
        sums[v] = _mm512_fmadd_ps(factor, _mm512_castsi512_ps(values), sums[v]);
      }
    }
MOESAIC_UNROLL
    for (int v = 0; v < kWide; v++) _mm512_storeu_ps(out + c + 16 * v, sums[v]);
  }
#endif
  for (int n = 0; n < count; n++) {
    const float factor = factors[n];
    if (weight.format == kBFloat16) {
      const uint16_t* row = reinterpret_cast<const uint16_t*>(weight.row(first + n));
#pragma omp simd
      for (int i = c; i < weight.width; i++) out[i] += factor * widen(row[i]);
    } else if (weight.format == kLossless) {
      const Lossless row(weight, first + n);
      uint16_t values[kWindow];
      for (int i = c; i < weight.width; i++) {
        if (i % kWindow == 0) {
          row.take_apart(i / kWindow, values, row.exponents());
          row.put_others(i / kWindow, row.first_other(i / kWindow), values);
        }
        out[i] += factor * widen(values[i % kWindow]);
      }
    } else {
      const float* row = reinterpret_cast<const float*>(weight.row(first + n));
#pragma omp simd
      for (int i = c; i < weight.width; i++) out[i] += factor * row[i];
    }
  }
}

}  // namespace moesaic
