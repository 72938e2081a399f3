// Products of the rows of a weight with activations, for weights in five formats.
//
// A weight is read once for up to four activations at a time. Sums are float32. Integer weights meet
// integer activations: those are rounded to 8 bits with one scale per group, as the weights are.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define MOESAIC_AVX512
#include <immintrin.h>
#endif

namespace moesaic {

constexpr int kGroup = 64;  // neighbours that share a scale, in weights and in activations
constexpr int kTile = 4;    // activations a row of a weight is multiplied by before the next is read
constexpr int kBlock = 128;  // neighbours of a row that share a scale in 8-bit floats

enum Format : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2, kInt4 = 3, kFloat8 = 4 };
constexpr int kFormats = 5;

// A weight as it lies in memory. Integers are as compressed-tensors stores them: half the number of
// codes is added to each, so that none is negative, and of two codes in a byte the first is in the
// low half. Rows of them are padded to whole groups.
struct Matrix {
  const uint8_t* values;
  const uint16_t* scales;  // bfloat16, one per group; of 8-bit floats float32, one per block; or null
  int64_t stride;          // bytes from a row to the next
  int64_t rows;            // 0 where a layer has no such weight
  int32_t width;
  int32_t format;

  const uint8_t* row(int64_t index) const { return values + index * stride; }
  const uint16_t* row_scales(int64_t index) const { return scales + index * groups(); }
  int64_t groups() const { return (width + kGroup - 1) / kGroup; }
  const float* row_blocks(int64_t index) const {
    return reinterpret_cast<const float*>(scales) + index * ((width + kBlock - 1) / kBlock);
  }
};

inline float widen(uint16_t half) {
  uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t narrow(float value) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// One vector in the form that weights of a format are multiplied with; the memory is the caller's.
struct Activation {
  float* values;   // padded with 0 to whole groups
  uint16_t* halves;
  int8_t* codes;   // for 4 bits those of even places of a group first, then the others
  float* scales;
  float* sums;     // of the codes of each group

  // Bytes that one of a width needs, and the activation that lies at an address.
  static int64_t padded(int64_t width) { return (width + kGroup - 1) / kGroup * kGroup; }
  static int64_t floats(int64_t width) {
    int64_t room = padded(width);
    return room + room / 2 + room / 4 + 2 * (room / kGroup);
  }
  static Activation at(float* memory, int64_t width) {
    int64_t room = padded(width);
    Activation found;
    found.values = memory;
    found.halves = reinterpret_cast<uint16_t*>(memory + room);
    found.codes = reinterpret_cast<int8_t*>(memory + room + room / 2);
    found.scales = memory + room + room / 2 + room / 4;
    found.sums = found.scales + room / kGroup;
    return found;
  }

  // Bring ``values`` into the form for a format.
  void prepare(int32_t width, int32_t format) {
    int64_t room = padded(width);
    std::fill(values + width, values + room, 0.0f);
    if (format == kBFloat16 || format == kFloat8) {
      for (int64_t i = 0; i < room; i++) halves[i] = narrow(values[i]);
    } else if (format != kFloat32) {
      for (int64_t group = 0; group < room / kGroup; group++) quantise(group, format == kInt4);
    }
  }

 private:
  void quantise(int64_t group, bool in_pairs) {
    const float* from = values + group * kGroup;
    int8_t* to = codes + group * kGroup;
    int8_t found[kGroup];
    float largest = 0.0f;
    for (int i = 0; i < kGroup; i++) largest = std::max(largest, std::fabs(from[i]));
    float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int total = 0;
    for (int i = 0; i < kGroup; i++) {
      int code = int(std::nearbyint(from[i] * inverse));
      found[i] = int8_t(code);
      total += code;
    }
    for (int i = 0; i < kGroup / 2; i++) {
      to[in_pairs ? i : 2 * i] = found[2 * i];
      to[in_pairs ? kGroup / 2 + i : 2 * i + 1] = found[2 * i + 1];
    }
    scales[group] = largest / 127.0f;
    sums[group] = float(total);
  }
};

template <int N>
inline void dot_float32(const float* row, int width, const Activation* const* x, float* out) {
  for (int n = 0; n < N; n++) {
    const float* other = x[n]->values;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < width; i++) sum += row[i] * other[i];
    out[n] = sum;
  }
}

template <int N>
inline void dot_bfloat16(const uint16_t* row, int width, const Activation* const* x, float* out) {
#ifdef MOESAIC_AVX512
  __m512 sums[N][2];
  for (int n = 0; n < N; n++) sums[n][0] = sums[n][1] = _mm512_setzero_ps();
  int i = 0;
  for (; i + 64 <= width; i += 64) {
    __m512bh low = (__m512bh)_mm512_loadu_si512(row + i);
    __m512bh high = (__m512bh)_mm512_loadu_si512(row + i + 32);
    for (int n = 0; n < N; n++) {
      const uint16_t* other = x[n]->halves + i;
      sums[n][0] = _mm512_dpbf16_ps(sums[n][0], low, (__m512bh)_mm512_loadu_si512(other));
      sums[n][1] = _mm512_dpbf16_ps(sums[n][1], high, (__m512bh)_mm512_loadu_si512(other + 32));
    }
  }
  for (; i < width; i += 32) {
    __mmask32 inside = width - i >= 32 ? 0xffffffffu : (1u << (width - i)) - 1;
    __m512bh part = (__m512bh)_mm512_maskz_loadu_epi16(inside, row + i);
    for (int n = 0; n < N; n++) {
      __m512bh other = (__m512bh)_mm512_loadu_si512(x[n]->halves + i);
      sums[n][0] = _mm512_dpbf16_ps(sums[n][0], part, other);
    }
  }
  for (int n = 0; n < N; n++) out[n] = _mm512_reduce_add_ps(_mm512_add_ps(sums[n][0], sums[n][1]));
#else
  for (int n = 0; n < N; n++) {
    const uint16_t* other = x[n]->halves;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < width; i++) sum += widen(row[i]) * widen(other[i]);
    out[n] = sum;
  }
#endif
}

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
inline void dot_float8(const uint8_t* row, const float* scales, int width,
                       const Activation* const* x, float* out) {
  const uint16_t* table = float8_magnitudes().data();
#ifdef MOESAIC_AVX512
  __m512i part[4];
  for (int i = 0; i < 4; i++) part[i] = _mm512_loadu_si512(table + 32 * i);
  __m512 sums[N];
  for (int n = 0; n < N; n++) sums[n] = _mm512_setzero_ps();
  for (int start = 0; start < width; start += kBlock, scales++) {
    __m512 inside[N];
    for (int n = 0; n < N; n++) inside[n] = _mm512_setzero_ps();
    for (int i = start; i < std::min(width, start + kBlock); i += 32) {
      __mmask32 there = width - i >= 32 ? 0xffffffffu : (1u << (width - i)) - 1;
      __m512i codes = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, row + i));
      __m512i low = _mm512_permutex2var_epi16(part[0], codes, part[1]);
      __m512i high = _mm512_permutex2var_epi16(part[2], codes, part[3]);
      __mmask32 is_high = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(0x40));
      __m512i sign = _mm512_slli_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(0x80)), 8);
      __m512i values = _mm512_or_si512(_mm512_mask_blend_epi16(is_high, low, high), sign);
      for (int n = 0; n < N; n++)
        inside[n] = _mm512_dpbf16_ps(inside[n], (__m512bh)values,
                                     (__m512bh)_mm512_loadu_si512(x[n]->halves + i));
    }
    for (int n = 0; n < N; n++)
      sums[n] = _mm512_fmadd_ps(inside[n], _mm512_set1_ps(*scales), sums[n]);
  }
  for (int n = 0; n < N; n++) out[n] = _mm512_reduce_add_ps(sums[n]);
#else
  for (int n = 0; n < N; n++) {
    float sum = 0.0f;
    for (int i = 0; i < width; i++) {
      float value = widen(table[row[i] & 127] | uint16_t((row[i] & 128) << 8));
      sum += value * scales[i / kBlock] * widen(x[n]->halves[i]);
    }
    out[n] = sum;
  }
#endif
}

// Codes of a group as bytes from 0 up, and what was added to make them so.
template <int32_t F>
struct Codes;

#ifdef MOESAIC_AVX512
template <>
struct Codes<kInt8> {
  static constexpr int kBytes = 64;
  static constexpr float kOffset = 128.0f;
  static __m512i load(const uint8_t* group) { return _mm512_loadu_si512(group); }
};
template <>
struct Codes<kInt4> {
  static constexpr int kBytes = 32;
  static constexpr float kOffset = 8.0f;
  static __m512i load(const uint8_t* group) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group));
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_and_si256(both, low)), high, 1);
  }
};

template <int32_t F, int N>
inline void dot_codes(const uint8_t* row, const uint16_t* scales, int64_t groups,
                      const Activation* const* x, float* out) {
  __m512 sums[N];
  float offsets[N];
  for (int n = 0; n < N; n++) sums[n] = _mm512_setzero_ps(), offsets[n] = 0.0f;
  for (int64_t g = 0; g < groups; g++) {
    __m512i codes = Codes<F>::load(row + g * Codes<F>::kBytes);
    float scale = widen(scales[g]);
    for (int n = 0; n < N; n++) {
      __m512i other = _mm512_loadu_si512(x[n]->codes + g * kGroup);
      __m512i products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, other);
      float joint = scale * x[n]->scales[g];
      sums[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_set1_ps(joint), sums[n]);
      offsets[n] += joint * x[n]->sums[g];
    }
  }
  for (int n = 0; n < N; n++) out[n] = _mm512_reduce_add_ps(sums[n]) - Codes<F>::kOffset * offsets[n];
}
#else
template <>
struct Codes<kInt8> {
  static constexpr int kBytes = 64;
  static int at(const uint8_t* group, int i) { return group[i] - 128; }
};
template <>
struct Codes<kInt4> {
  static constexpr int kBytes = 32;
  static int at(const uint8_t* group, int i) {
    return (i < 32 ? group[i] & 15 : group[i - 32] >> 4) - 8;
  }
};

template <int32_t F, int N>
inline void dot_codes(const uint8_t* row, const uint16_t* scales, int64_t groups,
                      const Activation* const* x, float* out) {
  for (int n = 0; n < N; n++) {
    float sum = 0.0f;
    for (int64_t g = 0; g < groups; g++) {
      const uint8_t* group = row + g * Codes<F>::kBytes;
      const int8_t* other = x[n]->codes + g * kGroup;
      int products = 0;
      for (int i = 0; i < kGroup; i++) products += Codes<F>::at(group, i) * other[i];
      sum += widen(scales[g]) * x[n]->scales[g] * float(products);
    }
    out[n] = sum;
  }
}
#endif

// One row of a weight times N activations.
template <int N>
inline void dot(const Matrix& weight, int64_t index, const Activation* const* x, float* out) {
  const uint8_t* row = weight.row(index);
  switch (weight.format) {
    case kFloat32:
      return dot_float32<N>(reinterpret_cast<const float*>(row), weight.width, x, out);
    case kBFloat16:
      return dot_bfloat16<N>(reinterpret_cast<const uint16_t*>(row), weight.width, x, out);
    case kInt8:
      return dot_codes<kInt8, N>(row, weight.row_scales(index), weight.groups(), x, out);
    case kFloat8:
      return dot_float8<N>(row, weight.row_blocks(index), weight.width, x, out);
    default:
      return dot_codes<kInt4, N>(row, weight.row_scales(index), weight.groups(), x, out);
  }
}

// One row of a weight times any number of activations: what it gives for x[i] goes to out[i].
inline void dot_all(const Matrix& weight, int64_t index, const Activation* const* x, int count,
                    float* out) {
  int i = 0;
  for (; i + kTile <= count; i += kTile) dot<kTile>(weight, index, x + i, out + i);
  for (; i < count; i++) dot<1>(weight, index, x + i, out + i);
}

}  // namespace moesaic
