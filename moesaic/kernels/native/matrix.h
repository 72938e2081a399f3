// Weights as they lie in memory, and vectors in the forms that weights are multiplied with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define MOESAIC_AVX512
#include <immintrin.h>
#endif

namespace moesaic {

// For functions that only ask for memory: GCC takes them for empty, and leaves out calls that stay calls.
#define MOESAIC_INLINE inline __attribute__((always_inline))

constexpr int kGroup = 64;   // neighbours that share a scale, in weights and in activations
constexpr int kBlock = 128;  // neighbours of a row that share a scale in 8-bit floats

enum Format : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2, kInt4 = 3, kFloat8 = 4, kLossless = 5 };
constexpr int kFormats = 6;

// A weight as it lies in memory. Integers are as compressed-tensors stores them: half the number of
// codes is added to each, so that none is negative, and of two codes in a byte the first is in the
// low half. Rows of them are padded to whole groups.
struct Matrix {
  const uint8_t* values;
  const uint16_t* scales;  // bfloat16, one per group; of 8-bit floats float32, one per block; or null
  const uint32_t* others;  // see lossless.h, where scales are the heads of rows; else null
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
  float* values;  // padded with 0 to whole pairs of groups
  uint16_t* halves;
  int8_t* codes;  // as `place` says
  float* scales;
  float* sums;    // of the codes of each group

  static int64_t padded(int64_t width) { return (width + 2 * kGroup - 1) / (2 * kGroup) * 2 * kGroup; }

  // Floats of memory that one of a width needs, and the activation that lies at an address.
  static int64_t floats(int64_t width) {
    int64_t room = padded(width);
    return (room + room / 2 + room / 4 + 2 * (room / kGroup) + 15) / 16 * 16;  // whole lines
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

  // Where code i of a group is. For 4 bits those of even places of two groups come first, then the
  // others: as the low and the high halves of the bytes of such a weight do.
  static int64_t place(int64_t group, int i, bool is_int4) {
    if (!is_int4) return group * kGroup + i;
    return group / 2 * 2 * kGroup + i % 2 * kGroup + group % 2 * (kGroup / 2) + i / 2;
  }

  // Bring ``values`` into the form for a format.
  void prepare(int32_t width, int32_t format) {
    int64_t room = padded(width);
    std::fill(values + width, values + room, 0.0f);
    if (format == kBFloat16 || format == kFloat8 || format == kLossless) {
      for (int64_t i = 0; i < room; i++) halves[i] = narrow(values[i]);
    } else if (format != kFloat32) {
      for (int64_t group = 0; group < room / kGroup; group++) quantise(group, format == kInt4);
    }
  }

 private:
#ifdef MOESAIC_AVX512
  void quantise(int64_t group, bool is_int4) {
    const float* from = values + group * kGroup;
    __m512 parts[4], largest = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) {
      parts[i] = _mm512_loadu_ps(from + 16 * i);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(parts[i]));
    }
    const float most = _mm512_reduce_max_ps(largest);
    const __m512 inverse = _mm512_set1_ps(most > 0 ? 127.0f / most : 0.0f);
    __m512i total = _mm512_setzero_si512(), found = total;
    for (int i = 0; i < 4; i++) {
      __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(parts[i], inverse));
      total = _mm512_add_epi32(total, rounded);
      __m512i narrowed = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(rounded));
      found = _mm512_mask_permutexvar_epi64(found, __mmask8(3 << (2 * i)),
                                            _mm512_set_epi64(1, 0, 1, 0, 1, 0, 1, 0), narrowed);
    }
    if (is_int4) {
      store_half(place(group, 0, true), _mm512_cvtepi16_epi8(found));
      store_half(place(group, 1, true), _mm512_cvtepi16_epi8(_mm512_srli_epi16(found, 8)));
    } else {
      _mm512_storeu_si512(codes + group * kGroup, found);
    }
    scales[group] = most / 127.0f;
    sums[group] = float(_mm512_reduce_add_epi32(total));
  }

  void store_half(int64_t to, __m256i half) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + to), half);
  }
#else
  void quantise(int64_t group, bool is_int4) {
    const float* from = values + group * kGroup;
    float largest = 0.0f;
    for (int i = 0; i < kGroup; i++) largest = std::max(largest, std::fabs(from[i]));
    float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int total = 0;
    for (int i = 0; i < kGroup; i++) {
      int code = int(std::nearbyint(from[i] * inverse));
      codes[place(group, i, is_int4)] = int8_t(code);
      total += code;
    }
    scales[group] = largest / 127.0f;
    sums[group] = float(total);
  }
#endif
};

}  // namespace moesaic
