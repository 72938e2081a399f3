// The values that rows of codes stand for: code · scale in float32, which may be rounded to bfloat16; or
// bfloat16 that is lossless.
//
// 32 neighbours are made at a time: they share a scale in every format. What a format is made of is in
// its `Codes32`. Rows are divided among the threads.
#include "dot.h"

namespace moesaic {
namespace {

constexpr int kSpan = 32;  // neighbours that are made together

inline void put(float* to, float value) { *to = value; }
inline void put(uint16_t* to, float value) { *to = std::isnan(value) ? 0x7fc0 : narrow(value); }

#ifdef MOESAIC_AVX512
// 32 values in their order.
struct Span {
  __m512 first, second;
};

inline __mmask32 inside(int count) { return count >= kSpan ? 0xffffffffu : (1u << count) - 1; }

inline __m512 widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// To the nearest, ties to even, by integers.
inline __m256i rounded(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values), one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
  __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  sum = _mm512_mask_mov_epi32(sum, is_nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
}

inline __m512i joined(__m256i first, __m256i second) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// The instruction that rounds takes numbers below 2^-126 for 0: is none among codes times this?
inline bool is_usual(float scale) { return scale == 0.0f || std::fabs(scale) >= 0x1p-100f; }

inline void put_halves(uint16_t* to, __m512i halves, int count) {
  if (count >= kSpan)
    _mm512_storeu_si512(to, halves);
  else
    _mm512_mask_storeu_epi16(to, inside(count), halves);
}

// Values that a scale was a factor of.
inline void put(uint16_t* to, Span values, int count, float scale) {
  put_halves(to,
             is_usual(scale) ? (__m512i)_mm512_cvtne2ps_pbh(values.second, values.first)
                             : joined(rounded(values.first), rounded(values.second)),
             count);
}

inline void put(float* to, Span values, int count, float) {
  const __mmask32 mask = inside(count);
  _mm512_mask_storeu_ps(to, __mmask16(mask), values.first);
  _mm512_mask_storeu_ps(to + 16, __mmask16(mask >> 16), values.second);
}
#endif

// Of a format, with `i` counted in a row: the scale of value i; value i without it. Where there are wide
// registers, `count` values from i on, a multiple of 32, written out.
template <int32_t F>
struct Codes32;

template <>
struct Codes32<kInt8> {
  static float scale(const Matrix& rows, int64_t row, int i) { return widen(rows.row_scales(row)[i / kGroup]); }
  static float at(const uint8_t* row, int i) { return float(int(row[i]) - 128); }
#ifdef MOESAIC_AVX512
  template <typename T>
  void put_span(const uint8_t* row, int i, int count, float scale, T* out) const {
    const __m512 factor = _mm512_set1_ps(scale);
    put(out, {_mm512_mul_ps(some(row + i), factor), _mm512_mul_ps(some(row + i + 16), factor)}, count, scale);
  }
  static __m512 some(const uint8_t* codes) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(wide, _mm512_set1_epi32(128)));
  }
#endif
};

template <>
struct Codes32<kInt4> {
  static float scale(const Matrix& rows, int64_t row, int i) { return widen(rows.row_scales(row)[i / kGroup]); }
  static float at(const uint8_t* row, int i) { return float((row[i / 2] >> (i % 2 * 4) & 15) - 8); }
#ifdef MOESAIC_AVX512
  // Each of the 16 codes is looked up among what it may stand for.
  static __m512 table(float scale) {
    const __m512 codes = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    return _mm512_mul_ps(codes, _mm512_set1_ps(scale));
  }
  static __m256i codes(const uint8_t* row, int i) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i / 2));
    const __m256i pairs = _mm256_cvtepu8_epi16(bytes);
    return _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), _mm256_set1_epi8(15));
  }
  void put_span(const uint8_t* row, int i, int count, float scale, uint16_t* out) const {
    const __m512i values = _mm512_castsi256_si512(rounded(table(scale)));
    put_halves(out, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(codes(row, i)), values), count);
  }
  void put_span(const uint8_t* row, int i, int count, float scale, float* out) const {
    const __m512 values = table(scale);
    const __m256i found = codes(row, i);
    const __m512i first = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(found));
    const __m512i second = _mm512_cvtepu8_epi32(_mm256_extracti128_si256(found, 1));
    put(out, {_mm512_permutexvar_ps(first, values), _mm512_permutexvar_ps(second, values)}, count, scale);
  }
#endif
};

template <>
struct Codes32<kFloat8> {
  static float scale(const Matrix& rows, int64_t row, int i) { return rows.row_blocks(row)[i / kBlock]; }
  static float at(const uint8_t* row, int i) {
    return widen(float8_magnitudes()[row[i] & 127] | uint16_t((row[i] & 128) << 8));
  }
#ifdef MOESAIC_AVX512
  __m512i part[4];  // what the codes without sign stand for

  Codes32() {
    for (int p = 0; p < 4; p++) part[p] = _mm512_loadu_si512(float8_magnitudes().data() + 32 * p);
  }
  template <typename T>
  void put_span(const uint8_t* row, int i, int count, float scale, T* out) const {
    // Masked reads only at the end of a row: the processor does not foresee what they will need.
    const __m256i bytes = count >= kSpan ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i))
                                         : _mm256_maskz_loadu_epi8(inside(count), row + i);
    const __m512i codes = _mm512_cvtepu8_epi16(bytes);
    const __m512i low = _mm512_permutex2var_epi16(part[0], codes, part[1]);
    const __m512i high = _mm512_permutex2var_epi16(part[2], codes, part[3]);
    const __mmask32 is_high = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(0x40));
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(0x80)), 8);
    const __m512i halves = _mm512_or_si512(_mm512_mask_blend_epi16(is_high, low, high), sign);
    const __m512 factor = _mm512_set1_ps(scale);
    put(out,
        {_mm512_mul_ps(widened(_mm512_castsi512_si256(halves)), factor),
         _mm512_mul_ps(widened(_mm512_extracti64x4_epi64(halves, 1)), factor)},
        count, scale);
  }
#endif
};

template <int32_t F, typename T>
void expand_rows(const Matrix& rows, T* out, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Codes32<F> codes;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows.rows; r++) {
      const uint8_t* row = rows.row(r);
      T* to = out + r * rows.width;
      for (int start = 0; start < rows.width; start += kSpan) {
        const int count = std::min(kSpan, rows.width - start);
        const float scale = codes.scale(rows, r, start);
#ifdef MOESAIC_AVX512
        codes.put_span(row, start, count, scale, to + start);
#else
#pragma omp simd
        for (int i = start; i < start + count; i++) put(to + i, codes.at(row, i) * scale);
#endif
      }
    }
  }
}

// Where a window of values is made: where it belongs, if all of it does and as it is.
inline uint16_t* place_of(uint16_t* out, uint16_t* beside, bool is_whole) { return is_whole ? out : beside; }
inline uint16_t* place_of(float*, uint16_t* beside, bool) { return beside; }

inline void widen_all(const uint16_t* from, int count, uint16_t* to) {
  if (from != to) std::copy(from, from + count, to);
}
inline void widen_all(const uint16_t* from, int count, float* to) {
#pragma omp simd
  for (int i = 0; i < count; i++) to[i] = widen(from[i]);
}

template <typename T>
void expand_lossless(const Matrix& rows, T* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows.rows; r++) {
    const Lossless row(rows, r);
    const Lossless::Known known = row.exponents();
    alignas(64) uint16_t beside[kWindow];
    int other = 0;
    for (int start = 0; start < rows.width; start += kWindow) {
      const int count = std::min(kWindow, rows.width - start);
      T* to = out + r * rows.width + start;
      uint16_t* values = place_of(to, beside, count == kWindow);
#ifdef MOESAIC_AVX512
      fetch_window<1>(row.row, start / kWindow);
#endif
      row.take_apart(start / kWindow, values, known);
      other = row.put_others(start / kWindow, other, values);
      widen_all(values, count, to);
    }
  }
}

template <typename T>
void expand(const Matrix& rows, T* out, int threads) {
  switch (rows.format) {
    case kLossless:
      return expand_lossless(rows, out, threads);
    case kInt8:
      return expand_rows<kInt8>(rows, out, threads);
    case kInt4:
      return expand_rows<kInt4>(rows, out, threads);
    case kFloat8:
      return expand_rows<kFloat8>(rows, out, threads);
  }
}

}  // namespace
}  // namespace moesaic

extern "C" {
void moesaic_expand_float32(const moesaic::Matrix* rows, float* out, int32_t threads) {
  moesaic::expand(*rows, out, threads);
}
void moesaic_expand_bfloat16(const moesaic::Matrix* rows, uint16_t* out, int32_t threads) {
  moesaic::expand(*rows, out, threads);
}
}
