// Arithmetic on one tile of tree_attention: R rows of queries against up to kKeyTile keys.
// D is head_dim padded to 16; rows of floats are D apart, rows of scores kKeyTile.
#pragma once

#include <type_traits>

#include "tree_attention.h"
#include "vec.h"

namespace {

using spark::attention::kKeyTile;
using spark::attention::padded;

constexpr int kRowBlock = 6;
constexpr int kVecBlock = kLanes == 16 ? 4 : 2;  // accumulators: kRowBlock * kVecBlock registers

template <typename T>
Vec load_tail(const T* p, int64_t d, int64_t dim) {
  if (d >= dim) return Vec{};
  return d + kLanes <= dim ? load(p + d) : load_some(p + d, static_cast<int>(dim - d));
}

// n elements as floats, zeros up to the padded length
template <typename T>
void copy_row(const T* from, int64_t n, float* to) {
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) store(to + d, load(from + d));
  for (; d < padded(n); d += kLanes) store(to + d, load_tail(from, d, n));
}

// How the packed tiles multiply. FloatProduct: elements are floats.
struct FloatProduct {
  static Vec add(Vec sum, const float* x, Vec y) { return sum + *x * y; }
  // store the weights of panel p of a row; return what they are now
  static Vec store_weights(float* row, int p, Vec weight) {
    store(row + p * kLanes, weight);
    return weight;
  }
};

#if defined(__AVX512BF16__)
// An element is a pair of bfloat16 in the bits of a float; products are exact, sums are floats.
struct PairProduct {
  static Vec add(Vec sum, const float* x, Vec y) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(*x), (__m512bh)y);
  }
  static Vec store_weights(float* row, int p, Vec weight) {
    BFloat16* to = reinterpret_cast<BFloat16*>(row) + p * kLanes;
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(weight));
    return load(to);
  }
};

// rows[k] = keys 2k and 2k + 1, interleaved
inline void pair_rows(const BFloat16* const* from, int n, int64_t head_dim, float* to,
                      const float** rows) {
  const int64_t dim = padded(head_dim);
  for (int k = 0; k < n; k += 2) {
    float* row = to + k / 2 * dim;
    rows[k / 2] = row;
    for (int64_t d = 0; d < dim; d += kLanes) {
      // a bfloat16 is the upper half of a float
      VecUint low = bit_cast<VecUint>(load_tail(from[k], d, head_dim)) >> 16;
      VecUint high{};
      if (k + 1 < n) high = bit_cast<VecUint>(load_tail(from[k + 1], d, head_dim));
      store(row + d, bit_cast<Vec>(low | high));
    }
  }
}
#endif

// to[panel][d][lane] = element d of row panel * kLanes + lane
template <typename T>
void pack_keys(const T* const* from, int panels, int64_t head_dim, float* to) {
  const int64_t dim = padded(head_dim);
  for (int p = 0; p < panels; ++p) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) rows[i] = load_tail(from[p * kLanes + i], d, head_dim);
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (p * dim + d + i) * kLanes, rows[i]);
    }
  }
}

// The rows as floats of padded length: in place where they are that already, else copied to `to`.
template <typename T>
void float_rows(const T* const* from, int n, int64_t head_dim, float* to, const float** rows) {
  const int64_t dim = padded(head_dim);
  if constexpr (std::is_same_v<T, float>) {
    if (head_dim % kLanes == 0) {
      for (int k = 0; k < n; ++k) rows[k] = from[k];
      return;
    }
  }
  for (int k = 0; k < n; ++k) {
    rows[k] = to + k * dim;
    copy_row(from[k], head_dim, to + k * dim);
  }
}

// call f(rows as a compile-time constant, first row) for blocks of up to kRowBlock rows
template <typename F>
void for_row_blocks(int rows, F&& f) {
  int blocks = (rows + kRowBlock - 1) / kRowBlock;
  for (int b = 0; b < blocks; ++b) {
    int begin = rows * b / blocks, n = rows * (b + 1) / blocks - begin;
    [&]<int... R>(std::integer_sequence<int, R...>) {
      (void)((n == R + 1 && (f(std::integral_constant<int, R + 1>{}, begin), true)) || ...);
    }(std::make_integer_sequence<int, kRowBlock>{});
  }
}

// scores[r][n * kLanes + lane] = q[r] . packed keys[n][..][lane]; `dim` counts elements
template <typename Product, int R, int N>
void multiply_packed(const float* q, const float* keys, int64_t dim, float* scores) {
  Vec acc[R][N] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Vec k[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) k[n] = load(keys + (n * dim + d) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[r][n] = Product::add(acc[r][n], q + r * dim + d, k[n]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(scores + r * kKeyTile + n * kLanes, acc[r][n]);
}

template <typename Product>
void score_packed(const float* q, const float* keys, int rows, int panels, int64_t dim,
                  float* scores) {
  for_row_blocks(rows, [&](auto R, int r) {
    auto panel = [&](auto N, int p) {
      multiply_packed<Product, R(), N()>(q + r * dim, keys + p * dim * kLanes, dim,
                                         scores + r * kKeyTile + p * kLanes);
    };
    int p = 0;
    for (; p + kVecBlock <= panels; p += kVecBlock)
      panel(std::integral_constant<int, kVecBlock>{}, p);
    for (; p < panels; ++p) panel(std::integral_constant<int, 1>{}, p);
  });
}

// the same from unpacked keys, for rows so few that packing would not pay
void score_rows(const float* q, const float* const* keys, int rows, int panels, int64_t head_dim,
                float* scores) {
  const int64_t dim = padded(head_dim);
  for (int p = 0; p < panels; ++p) {
    for (int r = 0; r < rows; ++r) {
      Vec acc[kLanes] = {};
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        Vec x = load(q + r * dim + d);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) acc[i] += x * load(keys[p * kLanes + i] + d);
      }
      store(scores + r * kKeyTile + p * kLanes, sum_rows(acc));
    }
  }
}

// out[r][n * kLanes] = decay[r] * out + sum over keys of p[r][key] * values[key][d + n * kLanes]
// S sets of sums run side by side where one would leave the multipliers waiting.
template <typename Product, int R, int N, int S>
void multiply_values(const float* p, const float* const* values, int64_t d, int keys, int64_t dim,
                     const float* decay, float* out) {
  Vec acc[S][R][N] = {};
  auto add = [&](int s, int key) {
    Vec v[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) v[n] = load(values[key] + d + n * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
        acc[s][r][n] = Product::add(acc[s][r][n], p + r * kKeyTile + key, v[n]);
    }
  };
  int k = 0;
  for (; k + S <= keys; k += S) {
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) add(s, k + s);
  }
  if constexpr (S > 1) {
    for (; k < keys; ++k) add(0, k);
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      Vec sum = acc[0][r][n];
      for (int s = 1; s < S; ++s) sum += acc[s][r][n];
      float* to = out + r * dim + n * kLanes;
      store(to, load(to) * decay[r] + sum);
    }
  }
}

template <typename Product>
void add_values(const float* p, const float* const* values, int rows, int keys, int64_t head_dim,
                const float* decay, float* out) {
  const int64_t dim = padded(head_dim);
  for_row_blocks(rows, [&](auto R, int r) {
    int64_t d = 0;
    auto columns = [&](auto N) {
      constexpr int kSets = R() * N() >= 8 ? 1 : R() * N() >= 4 ? 2 : 4;
      for (; d + N() * kLanes <= dim; d += N() * kLanes)
        multiply_values<Product, R(), N(), kSets>(p + r * kKeyTile, values, d, keys, dim, decay + r,
                                                  out + r * dim + d);
    };
    columns(std::integral_constant<int, kVecBlock>{});
    columns(std::integral_constant<int, 2>{});
    columns(std::integral_constant<int, 1>{});
  });
}

// cap * tanh(x / cap)
inline Vec soft_cap(Vec x, float cap) {
  Vec y = x / cap;
  Vec e = exp(y < 0.0f ? 2.0f * y : -2.0f * y);
  Vec tanh = (1.0f - e) / (1.0f + e);
  return (y < 0.0f ? -tanh : tanh) * cap;
}

inline VecInt lane_index() {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return VecInt{I...};
  }(std::make_integer_sequence<int, kLanes>{});
}

// Scores are factor * x, where x is a product of query and key, or the soft-capped score itself.
inline float score_factor(float scale, float softcap) { return softcap > 0 ? 1.0f : scale; }

// Turn a row's products into weights relative to its largest x so far, and update its running
// maximum and sum. The row sees the keys in (low, high].
template <typename Product>
void softmax_row(float* scores, int panels, int low, int high, float scale, float softcap,
                 float& row_max, float& row_sum, float& decay) {
  const bool masked = high < panels * kLanes - 1 || low >= 0;
  Vec top = splat(row_max);
  for (int p = 0; p < panels; ++p) {
    Vec x = load(scores + p * kLanes);
    if (softcap > 0) x = soft_cap(x * scale, softcap);
    if (masked) {
      VecInt key = lane_index() + p * kLanes;
      x = (key <= high) & (key > low) ? x : splat(-kInfinity);
    }
    if (masked || softcap > 0) store(scores + p * kLanes, x);
    top = max(top, x);
  }
  const float largest = reduce_max(top);
  // nothing visible so far: any finite reference keeps the weights at 0
  const float reference = largest == -kInfinity ? 0.0f : largest;
  const float factor = score_factor(scale, softcap) * kLog2E;
  Vec total{};
  for (int p = 0; p < panels; ++p) {
    // subtracted first, which is exact where it matters
    Vec weight = exp2((load(scores + p * kLanes) - reference) * factor);
    total += Product::store_weights(scores, p, weight);
  }
  decay = exp2(splat((row_max - reference) * factor))[0];
  row_max = largest;
  row_sum = row_sum * decay + reduce_sum(total);
}

}  // namespace
