// Attention of single positions over a cache that lies in blocks.
//
// Every thread takes part of the keys and keeps a running softmax over them (Milakov and Gimelshein
// 2018, arXiv 1805.02867); the parts are joined afterwards.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dot.h"

namespace moesaic {

// 2^x by a polynomial, so that loops over it become vector instructions; error below 3e-7.
inline float exponential(float x) {
  float scaled = std::max(x, -87.0f) * 1.44269504f;
  float whole = (scaled + 12582912.0f) - 12582912.0f;  // to the nearest integer
  float rest = scaled - whole;
  float power = 1.5403530e-4f;
  power = power * rest + 1.3333558e-3f;
  power = power * rest + 9.6181291e-3f;
  power = power * rest + 5.5504109e-2f;
  power = power * rest + 2.4022651e-1f;
  power = power * rest + 6.9314718e-1f;
  power = power * rest + 1.0f;
  uint32_t bits = uint32_t(int32_t(whole) + 127) << 23;
  float factor;
  std::memcpy(&factor, &bits, 4);
  return power * factor;
}

// What queries see, in values: head h of a query meets `key_width` values from `key_start` on of
// each cached position, and sums `value_width` of them from `value_start` on.
struct AttentionShape {
  int32_t heads, shared_by;  // query heads that share a key
  int32_t key_width, value_width;
  int32_t key_step, value_start, value_step;  // between heads that do not share

  int64_t key_start(int head) const { return int64_t(head / shared_by) * key_step; }
  int64_t values_from(int head) const { return value_start + int64_t(head / shared_by) * value_step; }
  int64_t state() const { return value_width + 2; }  // sums, highest score, sum of weights
};

// Cached positions of one sequence in one layer.
template <typename T>
struct Positions {
  const T* layer;
  const int32_t* table;
  int32_t block;
  int64_t width;

  const T* at(int64_t position) const {
    return layer + (int64_t(table[position / block]) * block + position % block) * width;
  }
};

constexpr int kKeys = 32;  // keys whose weights are computed before their values are summed

inline float score(const float* key, const float* query, int width) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < width; i++) sum += key[i] * query[i];
  return sum;
}

inline float score(const uint16_t* key, const uint16_t* query, int width) {
#ifdef MOESAIC_AVX512
  __m512 sum = _mm512_setzero_ps(), other = sum;
  int i = 0;
  for (; i + 64 <= width; i += 64) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(key + i),
                           (__m512bh)_mm512_loadu_si512(query + i));
    other = _mm512_dpbf16_ps(other, (__m512bh)_mm512_loadu_si512(key + i + 32),
                             (__m512bh)_mm512_loadu_si512(query + i + 32));
  }
  for (; i < width; i += 32) {
    __mmask32 inside = width - i >= 32 ? 0xffffffffu : (1u << (width - i)) - 1;
    sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(inside, key + i),
                           (__m512bh)_mm512_maskz_loadu_epi16(inside, query + i));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum, other));
#else
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < width; i++) sum += widen(key[i]) * widen(query[i]);
  return sum;
#endif
}

inline float widened(float value) { return value; }
inline float widened(uint16_t value) { return widen(value); }

// sums = sums · before + Σ weight · value, over the keys of a piece.
template <typename T>
inline void add_values(float* sums, int width, float before, const T* const* values,
                       const float* weights, int count) {
#pragma omp simd
  for (int i = 0; i < width; i++) sums[i] *= before;
  for (int k = 0; k < count; k++) {
    const T* value = values[k];
    float weight = weights[k];
#pragma omp simd
    for (int i = 0; i < width; i++) sums[i] += weight * widened(value[i]);
  }
}

#ifdef MOESAIC_AVX512
// Two keys at a time: their values side by side, multiplied and added in one instruction. Weights
// are rounded to bfloat16, as the framework's attention does.
template <>
inline void add_values<uint16_t>(float* sums, int width, float before, const uint16_t* const* values,
                                 const float* weights, int count) {
  alignas(64) static const uint16_t kLow[32] = {
      0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512 factor = _mm512_set1_ps(before);
  int pairs = (count + 1) / 2;
  __m512i joint[kKeys / 2];
  for (int k = 0; k < pairs; k++) {
    uint32_t second = 2 * k + 1 < count ? narrow(weights[2 * k + 1]) : 0;
    joint[k] = _mm512_set1_epi32(int(second << 16 | narrow(weights[2 * k])));
  }
  for (int i = 0; i < width; i += 32) {
    int left = width - i;
    __mmask32 inside = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    __mmask16 first = uint16_t(inside), rest = uint16_t(inside >> 16);
    __m512 sum0 = _mm512_mul_ps(_mm512_maskz_loadu_ps(first, sums + i), factor);
    __m512 sum1 = _mm512_mul_ps(_mm512_maskz_loadu_ps(rest, sums + i + 16), factor);
    for (int k = 0; k < pairs; k++) {
      const uint16_t* second = values[2 * k + 1 < count ? 2 * k + 1 : 2 * k];
      __m512i a = _mm512_maskz_loadu_epi16(inside, values[2 * k] + i);
      __m512i b = _mm512_maskz_loadu_epi16(inside, second + i);
      __m512bh weight = (__m512bh)joint[k];
      sum0 = _mm512_dpbf16_ps(sum0, weight, (__m512bh)_mm512_permutex2var_epi16(a, low, b));
      sum1 = _mm512_dpbf16_ps(sum1, weight, (__m512bh)_mm512_permutex2var_epi16(a, high, b));
    }
    _mm512_mask_storeu_ps(sums + i, first, sum0);
    _mm512_mask_storeu_ps(sums + i + 16, rest, sum1);
  }
}
#endif

// One query over the keys from `begin` to `end`; `state` of every head is begun here.
template <typename T>
void attend(const AttentionShape& shape, const T* query, const Positions<T>& cached, int64_t begin,
            int64_t end, float* state) {
  float weights[kKeys];
  const T* keys[kKeys];
  const T* values[kKeys];
  for (int head = 0; head < shape.heads; head++) {
    float* mine = state + head * shape.state();
    std::fill(mine, mine + shape.value_width, 0.0f);
    mine[shape.value_width] = -1e30f;
    mine[shape.value_width + 1] = 0.0f;
  }
  for (int64_t start = begin; start < end; start += kKeys) {
    int count = int(std::min<int64_t>(kKeys, end - start));
    for (int k = 0; k < count; k++) keys[k] = cached.at(start + k);
    for (int head = 0; head < shape.heads; head++) {
      float* mine = state + head * shape.state();
      float &highest = mine[shape.value_width], &total = mine[shape.value_width + 1];
      float before = highest;
      for (int k = 0; k < count; k++) {
        const T* key = keys[k] + shape.key_start(head);
        weights[k] = score(key, query + int64_t(head) * shape.key_width, shape.key_width);
        highest = std::max(highest, weights[k]);
        values[k] = keys[k] + shape.values_from(head);
      }
      float factor = exponential(before - highest), sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int k = 0; k < count; k++) sum += weights[k] = exponential(weights[k] - highest);
      total = total * factor + sum;
      add_values<T>(mine, shape.value_width, factor, values, weights, count);
    }
  }
}

// The states of one head from all threads, joined: `states[t · step]` is thread t's.
inline void join(const AttentionShape& shape, const float* states, int64_t step, int threads,
                 float* out) {
  int width = shape.value_width;
  float highest = -1e30f, total = 0.0f;
  for (int t = 0; t < threads; t++) highest = std::max(highest, states[t * step + width]);
  std::fill(out, out + width, 0.0f);
  for (int t = 0; t < threads; t++) {
    const float* part = states + t * step;
    float factor = exponential(part[width] - highest);
    total += factor * part[width + 1];
#pragma omp simd
    for (int i = 0; i < width; i++) out[i] += factor * part[i];
  }
  for (int i = 0; i < width; i++) out[i] /= total;
}

}  // namespace moesaic
