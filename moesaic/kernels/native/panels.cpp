// Products of matrices that lie side by side, one for each expert: of its rows with its matrix, or of
// its rows with its rows.
//
// Both factors are brought into panels: 12 rows of the left one, 32 columns of the right one, with a
// unit of 32 bits for every place on the axis that is summed over: a float32, or two neighbours in
// bfloat16, which one instruction multiplies and adds. Float32 may be rounded to bfloat16 on the way.
// 24 sums of 16 lanes stay in registers while a panel meets another (Goto and van de Geijn 2008, ACM
// TOMS 34(3), section 4). What a row and a column give depends on nothing else, and not on the number of
// threads.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "matrix.h"

#ifdef MOESAIC_AVX512
namespace moesaic {
namespace {

constexpr int kHigh = 12;          // rows of a panel of the left factor
constexpr int kWide = 32;          // columns of one of the right factor
constexpr int64_t kDeep = 512;     // units that are summed before the next are brought into panels
constexpr int64_t kKept = 1 << 17; // units of the left factor in panels at a time: half a near cache
constexpr int64_t kColumns = 512;  // columns of one task

// One factor: from a row (or a column) of the result to the next, and along the axis that is summed
// over. One of the two is 1.
template <typename T>
struct Factor {
  const T* values;
  int64_t across, along;

  Factor from(int64_t place, int64_t depth) const {
    return {values + place * across + depth * along, across, along};
  }
};

template <typename T>
struct Unit;

template <>
struct Unit<float> {
  static constexpr int kEach = 1;
  static __m512 add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  // 16 units along a row, of which `left` values are there.
  static __m512i load(const float* from, int64_t left) {
    if (left >= 16) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi32(__mmask16((1u << left) - 1), from);
  }
  // The values of 16 neighbours across.
  static __m512i pair(const float* first, const float*, __mmask16 inside) {
    if (inside == 0xffff) return _mm512_loadu_si512(first);
    return _mm512_maskz_loadu_epi32(inside, first);
  }
};

template <>
struct Unit<uint16_t> {
  static constexpr int kEach = 2;
  static __m512 add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  static __m512i load(const uint16_t* from, int64_t left) {
    if (left >= 32) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi16((1u << left) - 1, from);
  }
  static __m512i pair(const uint16_t* first, const uint16_t* second, __mmask16 inside) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, first));
    if (!second) return low;
    __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, second));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
  static __m512i load(const float* from, int64_t left) {
    return (__m512i)_mm512_cvtne2ps_pbh(some(from + 16, left - 16), some(from, left));
  }
  static __m512i pair(const float* first, const float* second, __mmask16 inside) {
    __m512i low = rounded(first, inside);
    return second ? _mm512_or_si512(low, _mm512_slli_epi32(rounded(second, inside), 16)) : low;
  }

 private:
  static __m512 some(const float* from, int64_t left) {
    if (left >= 16) return _mm512_loadu_ps(from);
    return left > 0 ? _mm512_maskz_loadu_ps(__mmask16((1u << left) - 1), from) : _mm512_setzero_ps();
  }
  static __m512i rounded(const float* from, __mmask16 inside) {
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(inside, from)));
  }
};

inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 8; i++) {
    y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) {
      x[4 * i + 2 * j] = _mm512_unpacklo_epi64(y[4 * i + j], y[4 * i + 2 + j]);
      x[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(y[4 * i + j], y[4 * i + 2 + j]);
    }
  for (int j = 0; j < 4; j++) {
    y[j] = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88);
    y[4 + j] = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
    y[8 + j] = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
    y[12 + j] = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
  }
  for (int j = 0; j < 4; j++) {
    x[j] = _mm512_shuffle_i32x4(y[j], y[8 + j], 0x88);
    x[8 + j] = _mm512_shuffle_i32x4(y[j], y[8 + j], 0xdd);
    x[4 + j] = _mm512_shuffle_i32x4(y[4 + j], y[12 + j], 0x88);
    x[12 + j] = _mm512_shuffle_i32x4(y[4 + j], y[12 + j], 0xdd);
  }
}

// `count` of W neighbours across, `depth` values along, as [units][W]; what is missing is 0. Up to four
// units more are written.
template <int W, typename T, typename S>
void pack(const Factor<S>& from, int64_t count, int64_t depth, uint32_t* to) {
  constexpr int kEach = Unit<T>::kEach;
  const int64_t units = (depth + kEach - 1) / kEach;
  if (from.across == 1) {
    for (int64_t u = 0; u < units; u++) {
      const S* first = from.values + u * kEach * from.along;
      const S* second = kEach * u + 1 < depth ? first + from.along : nullptr;
      for (int i = 0; i < W; i += 16) {
        const int64_t left = std::min<int64_t>(std::min(16, W - i), count - i);
        const __mmask16 inside = left > 0 ? uint16_t((1u << left) - 1) : 0;
        __m512i found = left > 0 ? Unit<T>::pair(first + i, second ? second + i : nullptr, inside)
                                 : _mm512_setzero_si512();
        _mm512_storeu_si512(to + u * W + i, found);
      }
    }
    return;
  }
  for (int i = 0; i < W; i += 16)
    for (int64_t u = 0; u < units; u += 16) {
      __m512i x[16];
      for (int r = 0; r < 16; r++)
        x[r] = i + r < std::min<int64_t>(count, W)
                   ? Unit<T>::load(from.values + (i + r) * from.across + u * kEach, depth - u * kEach)
                   : _mm512_setzero_si512();
      transpose(x);
      const int64_t last = std::min<int64_t>(16, units - u);
      for (int64_t r = 0; r < last; r++) _mm512_storeu_si512(to + (u + r) * W + i, x[r]);
    }
}

// Where results go: float32 or bfloat16, put there or added.
struct Place {
  void* values;
  int64_t step;
  bool is_half, adds;

  void put(int64_t row, int64_t column, __mmask16 inside, __m512 sum) const {
    if (is_half) {
      uint16_t* to = static_cast<uint16_t*>(values) + row * step + column;
      if (adds) {
        __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, to));
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)));
      }
      _mm256_mask_storeu_epi16(to, inside, (__m256i)_mm512_cvtneps_pbh(sum));
    } else {
      float* to = static_cast<float*>(values) + row * step + column;
      if (adds) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(inside, to));
      _mm512_mask_storeu_ps(to, inside, sum);
    }
  }
};

// R rows of a left panel with a right panel. Sums go on from `sums`, [R][32], and are kept there, unless
// they begin or end here.
template <typename T, int R>
void meet(const uint32_t* left, const uint32_t* right, int64_t units, float* sums, bool begins,
          const Place* place, int64_t row, int64_t column, int64_t columns) {
  __m512 sum[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) {
    sum[r][0] = begins ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * kWide);
    sum[r][1] = begins ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * kWide + 16);
  }
  for (int64_t u = 0; u < units; u++) {
    const __m512i first = _mm512_load_si512(right + u * kWide);
    const __m512i second = _mm512_load_si512(right + u * kWide + 16);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const __m512i one = _mm512_set1_epi32(int(left[u * kHigh + r]));
      sum[r][0] = Unit<T>::add(sum[r][0], one, first);
      sum[r][1] = Unit<T>::add(sum[r][1], one, second);
    }
  }
  const uint32_t inside = columns >= 32 ? 0xffffffffu : (1u << columns) - 1;
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
    if (place) {
      place->put(row + r, column, __mmask16(inside), sum[r][0]);
      if (columns > 16) place->put(row + r, column + 16, __mmask16(inside >> 16), sum[r][1]);
    } else {
      _mm512_storeu_ps(sums + r * kWide, sum[r][0]);
      _mm512_storeu_ps(sums + r * kWide + 16, sum[r][1]);
    }
}

template <typename T>
using Meet = void (*)(const uint32_t*, const uint32_t*, int64_t, float*, bool, const Place*, int64_t,
                      int64_t, int64_t);

template <typename T>
constexpr Meet<T> kMeet[kHigh + 1] = {nullptr,     meet<T, 1>, meet<T, 2>, meet<T, 3>, meet<T, 4>,
                                      meet<T, 5>,  meet<T, 6>, meet<T, 7>, meet<T, 8>, meet<T, 9>,
                                      meet<T, 10>, meet<T, 11>, meet<T, 12>};

// Memory that a thread keeps from call to call.
class Kept {
 public:
  uint32_t* units(int64_t count) {
    if (count > size_) {
      const size_t bytes = (size_t(count) * 4 / 64 + 2) * 64;
      memory_.reset(static_cast<uint32_t*>(std::aligned_alloc(64, bytes)));
      size_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(uint32_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<uint32_t, Free> memory_;
  int64_t size_ = 0;
};

// The product of two factors, [rows, depth] and [depth, columns], multiplied in T; the right one may lie
// there in another type.
template <typename T, typename S>
struct Product {
  Factor<T> left;
  Factor<S> right;
  int64_t rows, columns, depth;
  Place place;

  void run(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    thread_local Kept lefts, rights, sums;
    constexpr int kEach = Unit<T>::kEach;
    const int64_t most = std::min(kDeep * kEach, depth), units = (most + kEach - 1) / kEach;
    const int64_t panels = (row_end - row + kHigh - 1) / kHigh;
    const int64_t wide = (column_end - column + kWide - 1) / kWide;
    uint32_t* left_panels = lefts.units(panels * units * kHigh + 16);
    uint32_t* right_panel = rights.units(units * kWide + 16);
    const bool is_whole = depth <= most;
    float* kept = is_whole ? nullptr : reinterpret_cast<float*>(sums.units(panels * kHigh * wide * kWide));
    for (int64_t from = 0; from < depth || from == 0; from += most) {
      const int64_t deep = std::min(most, depth - from), now = (deep + kEach - 1) / kEach;
      for (int64_t i = 0; i < panels; i++) {
        const int64_t first = row + i * kHigh;
        pack<kHigh, T>(left.from(first, from), row_end - first, deep, left_panels + i * units * kHigh);
      }
      for (int64_t j = 0; j < wide; j++) {
        const int64_t first = column + j * kWide;
        pack<kWide, T>(right.from(first, from), column_end - first, deep, right_panel);
        const bool ends = from + deep >= depth;
        for (int64_t i = 0; i < panels; i++) {
          const int64_t high = std::min<int64_t>(kHigh, row_end - row - i * kHigh);
          kMeet<T>[high](left_panels + i * units * kHigh, right_panel, now,
                         kept ? kept + (i * wide + j) * kHigh * kWide : nullptr, from == 0,
                         ends ? &place : nullptr, row + i * kHigh, first,
                         std::min<int64_t>(kWide, column_end - first));
        }
      }
      if (depth == 0) return;
    }
  }

  // Rows of one task: as many as stay in a near cache.
  int64_t high() const {
    const int64_t units = std::min(kDeep, (depth + Unit<T>::kEach - 1) / Unit<T>::kEach);
    return std::max<int64_t>(1, kKept / std::max<int64_t>(1, units) / kHigh) * kHigh;
  }
};

template <typename P>
void run_all(const std::vector<P>& products, int threads) {
  struct Task {
    const P* product;
    int64_t row, column;
  };
  std::vector<Task> tasks;
  for (const P& one : products)
    for (int64_t row = 0; row < one.rows; row += one.high())
      for (int64_t column = 0; column < one.columns; column += kColumns) tasks.push_back({&one, row, column});
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (size_t i = 0; i < tasks.size(); i++) {
    const auto& [product, row, column] = tasks[i];
    product->run(row, std::min(product->rows, row + product->high()), column,
                 std::min(product->columns, column + kColumns));
  }
}

enum Cut : int32_t { kNone = 0, kRows = 1, kDepth = 2 };

// `count` products. `ends` cuts the rows of the left factor and of the results, or the axis that is summed
// over; what is not cut lies `each` apart.
template <typename P>
void run_cut(const P& first, const int64_t* each, int64_t count, const int32_t* ends, Cut cut, int threads) {
  std::vector<P> products(size_t(count), first);
  const int64_t size = first.place.is_half ? 2 : 4;
  for (int64_t g = 0; g < count; g++) {
    const int64_t start = g && cut ? ends[g - 1] : 0, length = cut ? ends[g] - start : 0;
    P& one = products[size_t(g)];
    int64_t out = g * each[2];
    if (cut == kRows) {
      one.left = one.left.from(start, 0), one.rows = length, out = start * one.place.step;
    } else if (cut == kDepth) {
      one.left = one.left.from(0, start), one.right = one.right.from(0, start), one.depth = length;
    } else {
      one.left.values += g * each[0];
    }
    if (cut != kDepth) one.right.values += g * each[1];
    one.place.values = static_cast<char*>(one.place.values) + out * size;
  }
  run_all(products, threads);
}

}  // namespace
}  // namespace moesaic

// Sizes: rows, columns and depth of a product. Strides: of the left factor across and along, of the right
// one, and from a row of the result to the next.
#define MOESAIC_PRODUCTS(suffix, T, S)                                                                     \
  void moesaic_products_##suffix(const T* left, const S* right, void* out, const int64_t* sizes,           \
                                 const int64_t* strides, const int64_t* each, int64_t count,               \
                                 const int32_t* ends, int32_t cut, int32_t is_half, int32_t adds,          \
                                 int32_t threads) {                                                        \
    moesaic::Place place{out, strides[4], bool(is_half), bool(adds)};                                      \
    moesaic::Product<T, S> first{{left, strides[0], strides[1]}, {right, strides[2], strides[3]},             \
                              sizes[0], sizes[1], sizes[2], place};                                        \
    moesaic::run_cut(first, each, count, ends, moesaic::Cut(cut), threads);                                \
  }

extern "C" {
MOESAIC_PRODUCTS(float32, float, float)
MOESAIC_PRODUCTS(bfloat16, uint16_t, uint16_t)
MOESAIC_PRODUCTS(mixed, uint16_t, float)
}
#endif

extern "C" int32_t moesaic_products_are_faster() {
#ifdef MOESAIC_AVX512
  return __builtin_cpu_is("amd");
#else
  return 0;
#endif
}
