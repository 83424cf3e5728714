// Vectors of floats in GCC/Clang vector extensions: written once, compiled once per instruction
// set. Everything is in an unnamed namespace and calls no library, so that no code built for one
// instruction set can be linked into another's.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecInt __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecUint __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecHalf __attribute__((vector_size(2 * kLanes)));

struct BFloat16 {
  uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vec splat(float x) { return x - Vec{}; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// compilers widen 16-bit lanes in pieces: name the instruction
inline Vec load(const BFloat16* p) {
#if defined(__AVX512F__)
  return bit_cast<Vec>(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#elif defined(__AVX2__)
  return bit_cast<Vec>(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#else
  VecHalf half;
  std::memcpy(&half, p, sizeof(half));
  return bit_cast<Vec>(__builtin_convertvector(half, VecUint) << 16);
#endif
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

// rounds to nearest even; NaN stays NaN
inline void store(BFloat16* p, Vec v) {
  VecUint bits = bit_cast<VecUint>(v);
  VecUint rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  VecUint quiet = (bits >> 16) | 0x40;
  VecHalf half = __builtin_convertvector(v == v ? rounded : quiet, VecHalf);
  std::memcpy(p, &half, sizeof(half));
}

// the first n < kLanes elements, zeros behind them
template <typename T>
inline Vec load_some(const T* p, int n) {
  T padded[kLanes] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

template <typename T>
inline void store_some(T* p, Vec v, int n) {
  T padded[kLanes];
  store(padded, v);
  std::memcpy(p, padded, n * sizeof(T));
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// lane i of the result: lane i ^ S of v
template <int S>
inline Vec swap_lanes(Vec v) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I ^ S)...);
  }(std::make_integer_sequence<int, kLanes>{});
}

template <int S = kLanes / 2>
inline float reduce_max(Vec v) {
  v = max(v, swap_lanes<S>(v));
  if constexpr (S == 1) {
    return v[0];
  } else {
    return reduce_max<S / 2>(v);
  }
}

template <int S = kLanes / 2>
inline float reduce_sum(Vec v) {
  v += swap_lanes<S>(v);
  if constexpr (S == 1) {
    return v[0];
  } else {
    return reduce_sum<S / 2>(v);
  }
}

constexpr float kLog2E = 1.44269504f;

// 2^x to 2 ulp for x <= 127; 0 or denormal below -126, 0 for -inf, NaN for NaN
inline Vec exp2(Vec x) {
#if defined(__AVX512DQ__)
  // the fraction above the integer below, which the scaling finds again
  Vec r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Vec p = 1.867130108e-3f * r + 9.017030217e-3f;
  p = p * r + 5.579991321e-2f;
  p = p * r + 2.401644501e-1f;
  p = p * r + 6.931513118e-1f;
  p = p * r + 1.0f;
  return _mm512_scalef_ps(p, x);
#else
  // the nearest integer falls out of the low bits of this sum
  constexpr float kShift = 12582912.0f;
  // in this order NaN passes through
  Vec clamped = x < -126.0f ? splat(-126.0f) : x;
  Vec shifted = clamped + kShift;
  Vec r = clamped - (shifted - kShift);
  Vec p = 1.535336188e-4f * r + 1.339887440e-3f;
  p = p * r + 9.618437357e-3f;
  p = p * r + 5.550332471e-2f;
  p = p * r + 2.402264791e-1f;
  p = p * r + 6.931472029e-1f;
  p = p * r + 1.0f;
  VecInt scaled = bit_cast<VecInt>(p) + (bit_cast<VecInt>(shifted) << 23);
  return x < -126.0f ? Vec{} : bit_cast<Vec>(scaled);
#endif
}

// e^x for x <= 88; the relative error grows with |x| as its rounding does
inline Vec exp(Vec x) { return exp2(x * kLog2E); }

template <int S, bool Upper>
inline Vec transpose_pair(Vec a, Vec b) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    if constexpr (Upper) {
      return __builtin_shufflevector(a, b, ((I & S) ? kLanes + I : I + S)...);
    } else {
      return __builtin_shufflevector(a, b, ((I & S) ? kLanes + I - S : I)...);
    }
  }(std::make_integer_sequence<int, kLanes>{});
}

template <int S = 1>
inline void transpose(Vec (&rows)[kLanes]) {
  if constexpr (S < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & S) continue;
      Vec a = rows[i], b = rows[i + S];
      rows[i] = transpose_pair<S, false>(a, b);
      rows[i + S] = transpose_pair<S, true>(a, b);
    }
    transpose<2 * S>(rows);
  }
}

// lane i of the result: the sum of rows[i], added in pairs
template <int S = 1>
inline Vec sum_rows(Vec (&rows)[kLanes]) {
  if constexpr (S == kLanes) {
    return rows[0];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += 2 * S) {
      Vec a = rows[i], b = rows[i + S];
      rows[i] = transpose_pair<S, false>(a, b) + transpose_pair<S, true>(a, b);
    }
    return sum_rows<2 * S>(rows);
  }
}

}  // namespace
