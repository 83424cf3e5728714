// A row's logits, and one warp's passes over a chunk of them: the chunk waits in shared memory and
// is added up in the order of csrc/cpu/score_chunk.h, so that the sums are the same to the bit.
#pragma once

#include <cstdint>
#include <type_traits>

#include "spark/score_math.h"

namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

// The larger, or NaN where either is.
__device__ inline float larger(float a, float b) {
#ifdef __CUDA_ARCH__
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  return std::isnan(a) || a > b ? a : b;
#endif
}

// Sixteen bytes of logits.
template <typename T>
struct alignas(16) Piece {
  static constexpr int kTokens = 16 / sizeof(T);
  static constexpr uint32_t kNothing = std::is_same_v<T, float>
                                           ? 0xff800000u
                                           : (std::is_same_v<T, Bf16> ? 0xff80u : 0xfc00u);  // -inf
  uint32_t word[4];

  __device__ float operator[](int i) const;
};

template <>
__device__ inline float Piece<float>::operator[](int i) const {
  return bits_as<float>(word[i]);
}
template <>
__device__ inline float Piece<Bf16>::operator[](int i) const {
  return bits_as<float>(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xffff0000u);
}
template <>
__device__ inline float Piece<Half>::operator[](int i) const {
  return widened(Half{static_cast<uint16_t>(word[i / 2] >> (16 * (i % 2)))});
}

// The larger of each two tokens, or NaN where either is; a word holds one or two of them.
template <typename T>
__device__ inline uint32_t larger_words(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  uint32_t out;
  if (std::is_same_v<T, float>) asm("max.NaN.f32 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  if (std::is_same_v<T, Bf16>) asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  if (std::is_same_v<T, Half>) asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
#else
  constexpr int kInOne = Piece<T>::kTokens / 4, kBits = 32 / kInOne;
  const Piece<T> x{{a}}, y{{b}};
  uint32_t out = 0;
  for (int i = 0; i < kInOne; ++i) {
    const bool first = std::isnan(x[i]) || x[i] > y[i];
    out |= ((first ? a : b) >> (kBits * i) & (~0u >> (32 - kBits))) << (kBits * i);
  }
  return out;
#endif
}

template <typename T>
struct Logits {
  const T* x;
  int64_t vocab;
  const uint32_t* words;  // the allowed bits; null = all are

  __device__ Logits(const SparkScore& a, int64_t r)
      : x(static_cast<const T*>(a.logits) + r * a.stride),
        vocab(a.vocab),
        words(a.allowed == nullptr ? nullptr : a.allowed + r * ((a.vocab + 31) / 32)) {}

  __device__ bool aligned() const { return reinterpret_cast<uintptr_t>(x) % 16 == 0; }
  // Bit i: whether token + i is allowed; right up to the next multiple of 32.
  __device__ uint32_t allowed(int64_t token) const {
    return words == nullptr || token >= vocab ? kAll : words[token / 32] >> (token % 32);
  }
  // One logit; -inf for what is forbidden or past the end.
  __device__ float at(int64_t token) const {
    return token < vocab && (allowed(token) & 1) ? widened(x[token]) : -kInf;
  }
  // The piece that starts at `token`, with the same past the end.
  __device__ Piece<T> load(int64_t token) const {
    Piece<T> piece;
    if (aligned() && token + Piece<T>::kTokens <= vocab) {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(x + token));
      piece.word[0] = four.x;
      piece.word[1] = four.y;
      piece.word[2] = four.z;
      piece.word[3] = four.w;
      return piece;
    }
    // rows that start anywhere: one element at a time, all of them from lines in the cache
    constexpr int kBits = 8 * sizeof(T), kInOne = 32 / kBits;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      piece.word[i] = 0;
#pragma unroll
      for (int k = 0; k < kInOne; ++k) {
        const int64_t t = token + i * kInOne + k;
        const uint32_t bits = t < vocab ? raw(x[t]) : Piece<T>::kNothing;
        piece.word[i] |= bits << (kBits * k);
      }
    }
    return piece;
  }
  static __device__ uint32_t raw(float v) { return bits_as<uint32_t>(v); }
  template <typename Narrow>
  static __device__ uint32_t raw(Narrow v) {
    return v.bits;
  }
};

// 2^y for y in [kFloor, 0], of which anything below counts as kFloor.
__device__ inline float exp2_of(float y) {
  const float t = y + kRound;
  const float r = y - (t - kRound);
  float p = exp2_coefficient(0);
#pragma unroll
  for (int i = 1; i < 6; ++i) p = fmaf(p, r, exp2_coefficient(i));
  return bits_as<float>(bits_as<uint32_t>(p) + (bits_as<uint32_t>(t) << 23));
}

__device__ inline float power_of(float x, float max, float factor) {
  return fmaxf(kFloor, factor * (x - max));
}

template <typename V>
__device__ inline V from_other(V value, int bit) {
  return __shfl_xor_sync(kAll, value, bit);
}

__device__ inline float largest_of_warp(float m) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) m = larger(m, from_other(m, bit));
  return m;
}

// Sixteen bytes from global to shared memory, past the registers; `wait` until they are there.
__device__ inline void copy_ahead(void* to, const void* from) {
#ifdef __CUDA_ARCH__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from));
#else
  memcpy(to, from, 16);
#endif
}
__device__ inline void wait_for_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// A chunk in shared memory, where each thread of a warp sees what it brought: the pieces `lane`,
// `lane` + 32 and so on.
template <typename T>
struct Held {
  static constexpr int kTokens = Piece<T>::kTokens;
  static constexpr int kPieces = kChunk / kTokens;
  // sums of one thread: of as many lanes as a piece has tokens, for each of its runs
  static constexpr int kSums = kLanes * kRuns / kWarp;

  const Logits<T>& row;
  int64_t start;  // the chunk's first token
  Piece<T>* pieces;
  int lane;

  __device__ Held(const Logits<T>& logits, int64_t chunk, Piece<T>* space, int thread)
      : row(logits), start(chunk * kChunk), pieces(space), lane(thread) {
    if (row.aligned() && start + kChunk <= row.vocab) {
#pragma unroll
      for (int p = lane; p < kPieces; p += kWarp)
        copy_ahead(pieces + p, row.x + start + p * kTokens);
    } else {
#pragma unroll 1
      for (int p = lane; p < kPieces; p += kWarp) pieces[p] = row.load(start + p * kTokens);
    }
    wait_for_copies();
  }

  // Calls visit(logit, i) for each token; i counts the sums of a thread.
  template <bool kMasked, typename Visit>
  __device__ void each(Visit visit) const {
#pragma unroll 1
    for (int first = lane; first < kPieces; first += kWarp * kSums / kTokens) {
#pragma unroll
      for (int j = 0; j < kSums / kTokens; ++j) {
        const int p = first + j * kWarp;
        const Piece<T> piece = pieces[p];
        const uint32_t bits = kMasked ? row.allowed(start + p * kTokens) : kAll;
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
          visit((bits >> i) & 1 ? piece[i] : -kInf, j * kTokens + i);
        }
      }
    }
  }

  __device__ float largest() const {
    Piece<T> most = pieces[lane];
#pragma unroll 1
    for (int p = lane + kWarp; p < kPieces; p += kWarp) {
      const Piece<T> piece = pieces[p];
#pragma unroll
      for (int i = 0; i < 4; ++i) most.word[i] = larger_words<T>(most.word[i], piece.word[i]);
    }
    float m = most[0];
#pragma unroll
    for (int i = 1; i < kTokens; ++i) m = larger(m, most[i]);
    return largest_of_warp(m);
  }
  __device__ float largest_allowed() const {
    float m = -kInf;
    each<true>([&](float x, int) { m = larger(m, x); });
    return largest_of_warp(m);
  }

  template <bool kMoments, bool kMasked>
  __device__ Sums sums(float max, float factor) const {
    float s[kSums] = {}, t[kSums] = {}, q[kSums] = {};
    each<kMasked>([&](float x, int at) {
      const float y = power_of(x, max, factor), e = exp2_of(y);
      s[at] = s[at] + e;
      if (kMoments) {
        const float ye = y * e;
        t[at] = t[at] + ye;
        q[at] = fmaf(y, ye, q[at]);
      }
    });
    Sums out;
    out.s = tree_sum(s);
    if (kMoments) {
      out.t = tree_sum(t);
      out.q = tree_sum(q);
    }
    return out;
  }

  // Adds pairs of `n` sums across the threads that differ in `bit`; each keeps half of them.
  static __device__ void halve(float* v, int n, int bit) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      const float mine = upper ? v[i + n / 2] : v[i], other = upper ? v[i] : v[i + n / 2];
      v[i] = mine + from_other(other, bit);
    }
  }
  // The runs as a tree, then the lanes: 8 apart, 4, 2 and 1.
  static __device__ float tree_sum(float* v) {
    if constexpr (kTokens == kSums) {
      // a thread has half the lanes of one run
      halve(v, 8, 16);
      halve(v, 4, 8);
      halve(v, 2, 4);
      v[0] += from_other(v[0], 2);
      v[0] += from_other(v[0], 1);
      v[0] += from_other(v[0], 16);
      v[0] += from_other(v[0], 8);
      v[0] += from_other(v[0], 4);
    } else {
      // a thread has a quarter of the lanes of two runs
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] += v[i + 4];
      halve(v, 4, 16);
      halve(v, 2, 8);
      v[0] += from_other(v[0], 4);
      v[0] += from_other(v[0], 2);
      v[0] += from_other(v[0], 1);
      v[0] += from_other(v[0], 16);
      v[0] += from_other(v[0], 8);
    }
    return v[0];
  }

  __device__ Chunk measure(double scale, bool moments) const {
    Chunk out;
    out.max = out.allowed_max = largest();
    // nothing but -inf, or an invalid row
    if (!(out.max > -kInf && out.max < kInf)) return out;
    out.plain = sums<true, false>(out.max, factor_of(1.0));
    const float factor = factor_of(scale);
    if (scale != 1.0) {
      out.hot = moments ? sums<true, false>(out.max, factor) : sums<false, false>(out.max, factor);
    }
    if (row.words != nullptr) {
      out.allowed_max = largest_allowed();
      if (out.allowed_max == -kInf) return out;
      out.allowed_mass = sums<false, true>(out.allowed_max, factor).s;
    }
    return out;
  }
};

}  // namespace
