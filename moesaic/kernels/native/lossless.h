// bfloat16 in 12 bits, no value changed: in a row of a weight nearly all exponents are among 15 neighbours.
//
// Of a row is told the lowest of its 15 exponents, how many values have none of them, and each of those
// with its place. The row itself is windows of 128 values in three lines of memory: what is left of the
// exponents, 4 bits each, then sign and mantissa, 8 bits each. A 16-bit lane of the first line has the
// codes of values lane, lane + 32, + 64 and + 96 from the lowest bits up; of the second, values lane and
// lane + 32; of the third, the other two. So a line is taken apart by shifts of whole lanes into values
// that lie in order. Up to 64 values at the end are half a window: a line of sign and mantissa, then 32
// bytes of codes, and as many that only let the next row begin at a line.
#pragma once

#include "matrix.h"

namespace moesaic {

constexpr int kWindow = 128;  // values that are taken apart together
constexpr int kHalf = kWindow / 2;
constexpr int kPart = 32;       // values of a vector
constexpr int kExponents = 15;  // neighbours; a code above them all stands for the exponent 0

struct Lossless {
  uint8_t* row;
  uint8_t* head;     // the lowest exponent, and how many others there are
  uint32_t* others;  // each its place above its bits, in the order of their places
  int32_t width;

  Lossless(const Matrix& weight, int64_t index)
      : row(const_cast<uint8_t*>(weight.row(index))),
        head(reinterpret_cast<uint8_t*>(const_cast<uint16_t*>(weight.scales) + index)),
        others(const_cast<uint32_t*>(weight.others) + index * room(weight.width)),
        width(weight.width) {}

  static int64_t room(int64_t width) { return std::min<int64_t>(255, 8 + width / 256); }
  // Whole windows of a row, and whether half a one follows.
  static int64_t windows(int64_t width) { return (width + kHalf - 1) / kWindow; }
  static bool has_half(int64_t width) { return windows(width) * kWindow < width; }
  static int64_t bytes(int64_t width) { return windows(width) * 192 + has_half(width) * 128; }
  // Values of a row with what fills its last window, or half of one.
  static int64_t padded(int64_t width) { return windows(width) * kWindow + has_half(width) * kHalf; }

  const uint8_t* window(int64_t index) const { return row + index * 192; }

  // The first of the others that lies in a window or behind it, and the window it is in; a window that
  // there is not, if there is none.
  int first_other(int64_t window) const {
    int other = 0;
    while (window_of(other) < window) other++;
    return other;
  }
  int64_t window_of(int other) const {
    return other < head[1] ? int64_t(others[other] >> 16) / kWindow : INT64_MAX;
  }

  // Put the others of a window among its values, from one on; which is the next afterwards.
  int put_others(int64_t window, int other, uint16_t* values) const {
    for (; window_of(other) == window; other++)
      values[(others[other] >> 16) % kWindow] = uint16_t(others[other]);
    return other;
  }

#ifdef MOESAIC_AVX512
  using Known = __m512i;

  // The exponent of each code where a bfloat16 has it: 16 of them twice, as 5 bits of a lane are looked up.
  Known exponents() const {
    const __m512i codes = _mm512_and_si512(_mm512_set1_epi16(15), _mm512_load_si512(kLanes));
    const __m512i found = _mm512_add_epi16(codes, _mm512_set1_epi16(head[0]));
    const __mmask32 among = _mm512_cmplt_epi16_mask(codes, _mm512_set1_epi16(kExponents));
    return _mm512_slli_epi16(_mm512_maskz_mov_epi16(among, found), 7);
  }

  // The four parts of a window, or the two of half a one; what are others is 0.
  static void take(const uint8_t* window, Known exponents, __m512i (&parts)[4]) {
    const __m512i codes = line(window), first = line(window + 64), second = line(window + 128);
    parts[0] = low(codes, first, exponents);
    parts[1] = high(_mm512_srli_epi16(codes, 4), first, exponents);
    parts[2] = low(_mm512_srli_epi16(codes, 8), second, exponents);
    parts[3] = high(_mm512_srli_epi16(codes, 12), second, exponents);
  }
  static void take_half(const uint8_t* half, Known exponents, __m512i (&parts)[2]) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + 64));
    const __m512i codes = _mm512_cvtepu8_epi16(pairs), bytes = line(half);
    parts[0] = low(codes, bytes, exponents);
    parts[1] = high(_mm512_srli_epi16(codes, 4), bytes, exponents);
  }

  void take_apart(int64_t index, uint16_t* to, Known exponents) const {
    if (index == windows(width)) {
      __m512i parts[2];
      take_half(window(index), exponents, parts);
      for (int i = 0; i < 2; i++) _mm512_storeu_si512(to + i * kPart, parts[i]);
    } else {
      __m512i parts[4];
      take(window(index), exponents, parts);
      for (int i = 0; i < 4; i++) _mm512_storeu_si512(to + i * kPart, parts[i]);
    }
  }
#else
  using Known = int;

  Known exponents() const { return head[0]; }

  // A window, or half a one if that is what is left of the row.
  void take_apart(int64_t index, uint16_t* to, Known lowest) const {
    const int count = index == windows(width) ? kHalf : kWindow;
    for (int i = 0; i < count; i++) {
      const Place at(index, i, index == windows(width));
      const int code = row[at.code] >> at.shift & 15, byte = row[at.byte];
      const int exponent = code < kExponents ? lowest + code : 0;
      to[i] = uint16_t((byte & 0x80) << 8 | exponent << 7 | (byte & 0x7f));
    }
  }
#endif

  // All values, in whole windows, the last of which may be half a one.
  void take_apart(uint16_t* to) const {
    const Known known = exponents();
    int other = 0;
    for (int64_t i = 0; i * kWindow < width; i++) {
      take_apart(i, to + i * kWindow, known);
      other = put_others(i, other, to + i * kWindow);
    }
  }

  // Make the row of so many bfloat16 values. False if there is too little room for others.
  bool put(const uint16_t* from) const {
    const int lowest = lowest_of(from);
    head[0] = uint8_t(lowest), head[1] = 0;
    for (int64_t i = 0; i < width; i += kWindow)
      if (!put_window(from + i, i, lowest)) return false;
    return true;
  }

 private:
  // Where in a row code and byte of a value of a window are.
  struct Place {
    int64_t code, byte;
    int shift;

    Place(int64_t window, int i, bool is_half) {
      const int64_t first = window * 192, lane = i % kPart, part = i / kPart;
      code = is_half ? first + 64 + lane : first + 2 * lane + part / 2;
      shift = int(part % 2) * 4;
      byte = first + (is_half ? 0 : 64 + part / 2 * 64) + 2 * lane + part % 2;
    }
  };

  // The lowest of the neighbours: they are the highest ones of the row, or where many lie below those, the
  // ones that most values have.
  int lowest_of(const uint16_t* from) const {
    int top = 0, below = 0;
#pragma omp simd reduction(max : top)
    for (int i = 0; i < width; i++) top = std::max(top, from[i] >> 7 & 0xff);
    const int lowest = std::max(1, top - kExponents + 1);
#pragma omp simd reduction(+ : below)
    for (int i = 0; i < width; i++) below += is_other(from[i] >> 7 & 0xff, lowest);
    return below <= room(width) / 2 ? lowest : best_of(from);
  }

  int best_of(const uint16_t* from) const {
    int32_t uses[256] = {};
    for (int i = 0; i < width; i++) uses[from[i] >> 7 & 0xff]++;
    int best = 1;
    int32_t inside = 0, most = 0;
    for (int top = 1; top < 256; top++) {
      inside += uses[top] - (top > kExponents ? uses[top - kExponents] : 0);
      if (inside > most) most = inside, best = std::max(1, top - kExponents + 1);
    }
    return best;
  }

  static bool is_other(int exponent, int lowest) {
    return exponent && (exponent < lowest || exponent >= lowest + kExponents);
  }

  // A window from its first value on, or half a one, or what there is of it.
  bool put_window(const uint16_t* from, int64_t first, int lowest) const {
    const int64_t index = first / kWindow, left = std::min<int64_t>(kWindow, width - first);
    const bool is_half = index == windows(width);
    uint8_t* to = row + index * 192;
#ifdef MOESAIC_AVX512
    if (left == kWindow && put_whole(from, to, lowest)) return true;
#endif
    std::memset(to, 0, is_half ? 128 : 192);
    for (int i = 0; i < (is_half ? kHalf : kWindow); i++) {
      const uint16_t value = i < left ? from[i] : 0;
      const int exponent = value >> 7 & 0xff;
      const bool other = is_other(exponent, lowest);
      if (other && head[1] == room(width)) return false;
      if (other) others[head[1]++] = uint32_t(first + i) << 16 | value;
      const Place at(0, i, is_half);
      to[at.code] |= uint8_t((exponent && !other ? exponent - lowest : kExponents) << at.shift);
      to[at.byte] = uint8_t(other ? 0 : (value >> 8 & 0x80) | (value & 0x7f));
    }
    return true;
  }

#ifdef MOESAIC_AVX512
  // Loaded once: compilers load a line anew for every instruction that can, and a line that is still on
  // its way is waited for as often.
  static __m512i line(const uint8_t* from) {
    __m512i found = _mm512_loadu_si512(from);
    asm("" : "+v"(found));
    return found;
  }
  // Values whose sign and mantissa are the low, or the high, bytes of lanes.
  static __m512i low(__m512i codes, __m512i bytes, Known exponents) {
    return joined(codes, bytes, _mm512_slli_epi16(bytes, 8), exponents);
  }
  static __m512i high(__m512i codes, __m512i bytes, Known exponents) {
    return joined(codes, _mm512_srli_epi16(bytes, 8), bytes, exponents);
  }
  static __m512i joined(__m512i codes, __m512i mantissa, __m512i sign, Known exponents) {
    const __m512i found = _mm512_permutexvar_epi16(codes, exponents);
    const __m512i either = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x7f), mantissa, found, 0xca);
    return _mm512_ternarylogic_epi32(either, sign, _mm512_set1_epi16(short(0x8000)), 0xf8);
  }

  // A whole window; false if one of its values is another.
  static bool put_whole(const uint16_t* from, uint8_t* to, int lowest) {
    const __m512i none = _mm512_setzero_si512(), above = _mm512_set1_epi16(kExponents);
    __m512i codes = none, lines[2] = {none, none};
    for (int part = 3; part >= 0; part--) {
      const __m512i values = _mm512_loadu_si512(from + part * kPart);
      const __m512i exponents = _mm512_and_si512(_mm512_srli_epi16(values, 7), _mm512_set1_epi16(0xff));
      const __mmask32 is_zero = _mm512_cmpeq_epi16_mask(exponents, none);
      const __m512i over = _mm512_sub_epi16(exponents, _mm512_set1_epi16(short(lowest)));
      const __mmask32 is_among = _mm512_cmplt_epu16_mask(over, above);
      if ((is_among | is_zero) != 0xffffffffu) return false;
      codes = _mm512_or_si512(_mm512_slli_epi16(codes, 4), _mm512_mask_mov_epi16(over, is_zero, above));
      const __m512i sign = _mm512_and_si512(_mm512_srli_epi16(values, 8), _mm512_set1_epi16(0x80));
      const __m512i bytes = _mm512_or_si512(sign, _mm512_and_si512(values, _mm512_set1_epi16(0x7f)));
      lines[part / 2] = _mm512_or_si512(_mm512_slli_epi16(lines[part / 2], 8), bytes);
    }
    _mm512_storeu_si512(to, codes);
    _mm512_storeu_si512(to + 64, lines[0]);
    _mm512_storeu_si512(to + 128, lines[1]);
    return true;
  }

  alignas(64) static constexpr uint16_t kLanes[kPart] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
#endif
};

}  // namespace moesaic
