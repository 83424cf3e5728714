// Arithmetic on one tile of tree_attention: R rows of queries against up to kKeyTile keys.
// Few rows stand as rows of scores, kKeyTile apart, with keys in the lanes. Many rows stand in the
// lanes, so that nothing is packed per tile and the softmax needs no sums across lanes.
// D is head_dim padded to 16; rows of floats are D apart.
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
  // the same of keys k and k + 1, from row_of(k) on, `stride` apart; return the sum
  static int row_of(int k) { return k; }
  static Vec store_pair(float* to, int64_t stride, Vec first, Vec second) {
    store(to, first);
    store(to + stride, second);
    return first + second;
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
  static int row_of(int k) { return k / 2; }
  static Vec store_pair(float* to, int64_t, Vec first, Vec second) {
    // to the nearest: weights are neither negative nor infinite
    VecUint low = (bit_cast<VecUint>(first) + 0x8000u) & 0xffff0000u;
    VecUint high = (bit_cast<VecUint>(second) + 0x8000u) & 0xffff0000u;
    store(to, bit_cast<Vec>(low >> 16 | high));
    return bit_cast<Vec>(low) + bit_cast<Vec>(high);
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
void pack_rows(const T* const* from, int panels, int64_t head_dim, float* to) {
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
    if (head_dim == dim) {
      for (int k = 0; k < n; ++k) rows[k] = from[k];
      return;
    }
  }
  for (int k = 0; k < n; ++k) {
    rows[k] = to + k * dim;
    copy_row(from[k], head_dim, to + k * dim);
  }
}

// call f(size as a compile-time constant, first) for blocks of up to Most of n things
template <int Most, typename F>
void for_blocks(int n, F&& f) {
  int blocks = (n + Most - 1) / Most;
  for (int b = 0; b < blocks; ++b) {
    int begin = n * b / blocks, size = n * (b + 1) / blocks - begin;
    [&]<int... I>(std::integer_sequence<int, I...>) {
      (void)((size == I + 1 && (f(std::integral_constant<int, I + 1>{}, begin), true)) || ...);
    }(std::make_integer_sequence<int, Most>{});
  }
}

// scores[r][n * kLanes + lane] = rows[r] . packed[n][..][lane] over `dim` elements
template <typename Product, int R, int N>
void multiply_packed(const float* const* rows, const float* packed, int64_t dim, float* scores,
                     int64_t stride) {
  Vec acc[R][N] = {};
  const float* row[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) row[r] = rows[r];
  for (int64_t d = 0; d < dim; ++d) {
    Vec x[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) x[n] = load(packed + (n * padded(dim) + d) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[r][n] = Product::add(acc[r][n], row[r] + d, x[n]);
    }
  }
  // rolled up, the loop would put the sums into memory
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) store(scores + r * stride + n * kLanes, acc[r][n]);
  }
}

// rows of scores are `stride` apart
template <typename Product>
void score_packed(const float* const* rows, const float* packed, int num_rows, int panels,
                  int64_t dim, float* scores, int64_t stride) {
  for_blocks<kVecBlock>(panels, [&](auto N, int p) {
    for_blocks<kRowBlock>(num_rows, [&](auto R, int r) {
      multiply_packed<Product, R(), N()>(rows + r, packed + p * padded(dim) * kLanes, dim,
                                         scores + r * stride + p * kLanes, stride);
    });
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

// Weights of a tile: that of row r and key k at p[r * row + k * key].
struct Weights {
  const float* p;
  int64_t row, key;
};

// out[r][n * kLanes] = decay[r] * out + sum over keys of w[r][key] * values[key][d + n * kLanes]
// S sets of sums run side by side where one would leave the multipliers waiting.
template <typename Product, int R, int N, int S>
void multiply_values(Weights w, const float* const* values, int64_t d, int keys, int64_t dim,
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
        acc[s][r][n] = Product::add(acc[s][r][n], w.p + r * w.row + key * w.key, v[n]);
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
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      Vec sum = acc[0][r][n];
#pragma GCC unroll 8
      for (int s = 1; s < S; ++s) sum += acc[s][r][n];
      float* to = out + r * dim + n * kLanes;
      store(to, load(to) * decay[r] + sum);
    }
  }
}

template <typename Product>
void add_values(Weights w, const float* const* values, int rows, int keys, int64_t head_dim,
                const float* decay, float* out) {
  const int64_t dim = padded(head_dim);
  // one block of columns for all rows: it stays in the first cache
  for_blocks<kVecBlock>(static_cast<int>(dim / kLanes), [&](auto N, int v) {
    const int64_t d = v * kLanes;
    for_blocks<kRowBlock>(rows, [&](auto R, int r) {
      constexpr int kSets = R() * N() >= 8 ? 1 : R() * N() >= 4 ? 2 : 4;
      multiply_values<Product, R(), N(), kSets>({w.p + r * w.row, w.row, w.key}, values, d, keys,
                                                dim, decay + r, out + r * dim + d);
    });
  });
}

}  // namespace
