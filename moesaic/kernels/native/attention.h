// Attention of single positions over a cache that lies in blocks.
//
// Every thread takes part of the keys and keeps a running softmax over them (Milakov and Gimelshein
// 2018, arXiv 1805.02867); the parts are joined afterwards.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dot.h"

namespace moesaic {

// e^x by a polynomial, so that loops over it become vector instructions; relative error below 3e-7 from
// -87 to 88. Below it is e^-87, above infinity.
inline float exponential(float x) {
  float scaled = std::max(x, -87.0f) * 1.44269504f;
  const float shifted = scaled + 12582912.0f;  // its last bits are the nearest integer
  float whole = shifted - 12582912.0f;
  float rest = scaled - whole;
  float power = 1.5403530e-4f;
  power = power * rest + 1.3333558e-3f;
  power = power * rest + 9.6181291e-3f;
  power = power * rest + 5.5504109e-2f;
  power = power * rest + 2.4022651e-1f;
  power = power * rest + 6.9314718e-1f;
  power = power * rest + 1.0f;
  int32_t integer;
  std::memcpy(&integer, &shifted, 4);
  // Larger numbers have larger bits, however large: infinity is the most that comes out.
  const uint32_t bits = uint32_t(std::min(integer - 0x4b400000 + 127, 255)) << 23;
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

constexpr int kKeys = 32;   // keys whose weights are computed before their values are summed
constexpr int kHeads = 4;   // heads that share keys, whose values are summed together

inline float widened(float value) { return value; }
inline float widened(uint16_t value) { return widen(value); }

// out[k] is key k times the query, for `count` keys.
template <typename T>
inline void score(const T* const* keys, int count, const T* query, int width, float* out) {
  for (int k = 0; k < count; k++) {
    const T* key = keys[k];
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < width; i++) sum += widened(key[i]) * widened(query[i]);
    out[k] = sum;
  }
}

// sums[h] = sums[h] · factors[h] + Σ weight · value over `count` values, for H heads that share them;
// head h's weights begin at weights + h · kKeys.
template <int H, typename T>
inline void add_values(float* const* sums, const float* factors, const float* weights, int width,
                       const T* const* values, int count) {
  for (int h = 0; h < H; h++) {
    float* mine = sums[h];
#pragma omp simd
    for (int i = 0; i < width; i++) mine[i] *= factors[h];
    for (int k = 0; k < count; k++) {
      const T* value = values[k];
      const float weight = weights[h * kKeys + k];
#pragma omp simd
      for (int i = 0; i < width; i++) mine[i] += weight * widened(value[i]);
    }
  }
}

#ifdef MOESAIC_AVX512
// Work on 32 values at a time, and on what is left. Only that is loaded under a mask: the processor
// does not foresee what masked loads will need.
template <typename F>
inline void in_wholes(int width, F&& work) {
  int i = 0;
  for (; i + 32 <= width; i += 32)
    work(i, [](const uint16_t* from) { return _mm512_loadu_si512(from); });
  if (i < width) {
    const __mmask32 inside = (1u << (width - i)) - 1;
    work(i, [=](const uint16_t* from) { return _mm512_maskz_loadu_epi16(inside, from); });
  }
}

// Four keys at a time, so that their sums are taken together.
template <>
inline void score<uint16_t>(const uint16_t* const* keys, int count, const uint16_t* query, int width,
                            float* out) {
  for (int k = 0; k < count; k += 4) {
    const uint16_t* four[4];
    for (int j = 0; j < 4; j++) four[j] = keys[std::min(k + j, count - 1)];
    __m512 sums[4];
    for (int j = 0; j < 4; j++) sums[j] = _mm512_setzero_ps();
    auto add = [&](int i, auto load) {
      __m512bh part = (__m512bh)load(query + i);
      for (int j = 0; j < 4; j++)
        sums[j] = _mm512_dpbf16_ps(sums[j], part, (__m512bh)load(four[j] + i));
    };
    in_wholes(width, add);
    __m128 found = sums_of(sums[0], sums[1], sums[2], sums[3]);
    if (k + 4 <= count) {
      _mm_storeu_ps(out + k, found);
    } else {
      float last[4];
      _mm_storeu_ps(last, found);
      std::copy(last, last + count - k, out + k);
    }
  }
}

// Two values side by side, multiplied by their weights and added in one instruction. Weights are
// rounded to bfloat16, as the framework's attention does.
template <int H>
inline void add_pairs(float* const* sums, const float* factors, const float* weights, int width,
                      const uint16_t* const* values, int count) {
  alignas(64) static const uint16_t kLow[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const int pairs = (count + 1) / 2;
  uint32_t joint[H][kKeys / 2];
  for (int h = 0; h < H; h++)
    for (int k = 0; k < pairs; k++) {
      const float* both = weights + h * kKeys + 2 * k;
      uint32_t second = 2 * k + 1 < count ? narrow(both[1]) : 0;
      joint[h][k] = second << 16 | narrow(both[0]);
    }
  in_wholes(width, [&](int i, auto load) {
    const int left = width - i;
    const __mmask32 inside = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    const __mmask16 first = uint16_t(inside), rest = uint16_t(inside >> 16);
    __m512 sum[H][2];
    for (int h = 0; h < H; h++) {
      __m512 factor = _mm512_set1_ps(factors[h]);
      sum[h][0] = _mm512_mul_ps(_mm512_maskz_loadu_ps(first, sums[h] + i), factor);
      sum[h][1] = _mm512_mul_ps(_mm512_maskz_loadu_ps(rest, sums[h] + i + 16), factor);
    }
    for (int k = 0; k < pairs; k++) {
      const uint16_t* second = values[2 * k + 1 < count ? 2 * k + 1 : 2 * k];
      __m512i a = load(values[2 * k] + i), b = load(second + i);
      __m512bh lower = (__m512bh)_mm512_permutex2var_epi16(a, low, b);
      __m512bh upper = (__m512bh)_mm512_permutex2var_epi16(a, high, b);
      for (int h = 0; h < H; h++) {
        __m512bh weight = (__m512bh)_mm512_set1_epi32(int(joint[h][k]));
        sum[h][0] = _mm512_dpbf16_ps(sum[h][0], weight, lower);
        sum[h][1] = _mm512_dpbf16_ps(sum[h][1], weight, upper);
      }
    }
    for (int h = 0; h < H; h++) {
      _mm512_mask_storeu_ps(sums[h] + i, first, sum[h][0]);
      _mm512_mask_storeu_ps(sums[h] + i + 16, rest, sum[h][1]);
    }
  });
}

template <>
inline void add_values<1, uint16_t>(float* const* sums, const float* factors, const float* weights,
                                    int width, const uint16_t* const* values, int count) {
  add_pairs<1>(sums, factors, weights, width, values, count);
}
template <>
inline void add_values<kHeads, uint16_t>(float* const* sums, const float* factors,
                                         const float* weights, int width,
                                         const uint16_t* const* values, int count) {
  add_pairs<kHeads>(sums, factors, weights, width, values, count);
}
#endif

// The running softmax of one head over the scores of a piece of keys: they become weights, and what
// was summed before has to be multiplied by the factor that comes back.
inline float soften(float* scores, int count, float& highest, float& total) {
  const float before = highest;
  for (int k = 0; k < count; k++) highest = std::max(highest, scores[k]);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int k = 0; k < count; k++) sum += scores[k] = exponential(scores[k] - highest);
  const float factor = exponential(before - highest);
  total = total * factor + sum;
  return factor;
}

// One query over the keys from `begin` to `end`; `state` of every head is begun here.
template <typename T>
void attend(const AttentionShape& shape, const T* query, const Positions<T>& cached, int64_t begin,
            int64_t end, float* state) {
  const int together = shape.shared_by % kHeads == 0 ? kHeads : 1, width = shape.value_width;
  for (int head = 0; head < shape.heads; head++) {
    float* mine = state + head * shape.state();
    std::fill(mine, mine + width, 0.0f);
    mine[width] = -1e30f;
    mine[width + 1] = 0.0f;
  }
  const T *rows[kKeys], *keys[kKeys], *values[kKeys];
  float weights[kHeads * kKeys], factors[kHeads];
  float* sums[kHeads];
  for (int64_t start = begin; start < end; start += kKeys) {
    const int count = int(std::min<int64_t>(kKeys, end - start));
    for (int k = 0; k < count; k++) rows[k] = cached.at(start + k);
    for (int first = 0; first < shape.heads; first += together) {
      for (int k = 0; k < count; k++) {
        keys[k] = rows[k] + shape.key_start(first);
        values[k] = rows[k] + shape.values_from(first);
      }
      for (int h = 0; h < together; h++) {
        sums[h] = state + (first + h) * shape.state();
        const T* asked = query + int64_t(first + h) * shape.key_width;
        score<T>(keys, count, asked, shape.key_width, weights + h * kKeys);
        factors[h] = soften(weights + h * kKeys, count, sums[h][width], sums[h][width + 1]);
      }
      if (together == kHeads) {
        add_values<kHeads, T>(sums, factors, weights, width, values, count);
      } else {
        add_values<1, T>(sums, factors, weights, width, values, count);
      }
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
