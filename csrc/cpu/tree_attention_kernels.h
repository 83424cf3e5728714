// The kernels of tree_attention, compiled once per instruction set by tree_attention_<isa>.cpp.
// Shapes: R rows of queries, KT keys of a tile, D head_dim padded to 16.
#pragma once

#include "tree_attention.h"
#include "vec.h"

namespace {

using spark::attention::Context;
using spark::attention::Item;
using spark::attention::Kernels;
using spark::attention::kKeyTile;
using spark::attention::kRowTile;
using spark::attention::padded;

constexpr int kRowBlock = 6;
constexpr int kVecBlock = kLanes == 16 ? 4 : 2;  // accumulators: kRowBlock * kVecBlock registers

// Where a row comes from and how far it sees.
struct Row {
  int32_t sequence;
  int32_t token;  // in the sequence's queries
  int32_t head;
  int32_t position;
};

// Carved from one thread's scratch.
struct Tile {
  float* q;       // [R, D] scaled
  float* out;     // [R, D] unnormalised
  float* scores;  // [R, KT]
  float* keys;    // [KT / kLanes, D, kLanes]
  float* values;  // [KT, D]
  float* max;     // [R]
  float* sum;     // [R]
  float* decay;   // [R] what the previous tiles' results are worth
  Row* rows;      // [R]

  Tile(float* p, int64_t dim) {
    auto take = [&](int64_t n) {
      float* start = p;
      p += n;
      return start;
    };
    q = take(kRowTile * dim);
    out = take(kRowTile * dim);
    scores = take(kRowTile * kKeyTile);
    keys = take(kKeyTile * dim);
    values = take(kKeyTile * dim);
    max = take(kRowTile);
    sum = take(kRowTile);
    decay = take(kRowTile);
    rows = reinterpret_cast<Row*>(take(4 * kRowTile));
  }
};

template <typename T>
void copy_row(const T* from, T* to, int64_t n) {
  std::memcpy(to, from, n * sizeof(T));
}

template <typename T>
void write(const Context& c, int64_t token_begin, int64_t token_end) {
  const SparkTreeAttention& a = *c.args;
  const int64_t block_size = a.plan->block_size;
  int32_t s = 0;
  for (int64_t t = token_begin; t < token_end; ++t) {
    while (t >= c.query_offsets[s + 1]) ++s;
    int64_t position = c.lengths[s] - (c.query_offsets[s + 1] - t);
    int64_t block = c.tables[c.table_offsets[s] + position / block_size];
    for (int64_t h = 0; h < a.num_kv_heads; ++h) {
      int64_t to = ((block * a.num_kv_heads + h) * block_size + position % block_size) * a.head_dim;
      copy_row(static_cast<const T*>(a.k) + t * a.k_strides[0] + h * a.k_strides[1],
               static_cast<T*>(a.k_cache) + to, a.head_dim);
      copy_row(static_cast<const T*>(a.v) + t * a.v_strides[0] + h * a.v_strides[1],
               static_cast<T*>(a.v_cache) + to, a.head_dim);
    }
  }
}

// Fill the rows of the item; return their number.
int list_rows(const Context& c, const Item& item, Row* rows) {
  const SparkTreeAttention& a = *c.args;
  const SparkRun& run = c.runs[item.run];
  const int32_t group = static_cast<int32_t>(a.num_heads / a.num_kv_heads);
  int n = 0, before = 0;
  for (int32_t i = run.first; i < run.first + run.count && before < item.row_end; ++i) {
    int32_t s = c.order[i];
    int32_t queries = static_cast<int32_t>(c.query_length(s));
    int32_t begin = item.row_begin > before ? item.row_begin - before : 0;
    int32_t end = item.row_end - before < queries * group ? item.row_end - before : queries * group;
    for (int32_t r = begin; r < end; ++r) {
      int32_t token = r / group;
      rows[n++] = {s, token, item.kv_head * group + r % group, c.lengths[s] - queries + token};
    }
    before += queries * group;
  }
  return n;
}

template <typename T>
Vec load_tail(const T* p, int64_t d, int64_t dim) {
  return d + kLanes <= dim ? load(p + d) : load_some(p + d, static_cast<int>(dim - d));
}

template <typename T>
void load_queries(const Context& c, const Tile& tile, int rows) {
  const SparkTreeAttention& a = *c.args;
  const int64_t dim = padded(a.head_dim);
  for (int r = 0; r < rows; ++r) {
    const Row& row = tile.rows[r];
    const T* q = static_cast<const T*>(a.q) +
                 (c.query_offsets[row.sequence] + row.token) * a.q_strides[0] +
                 row.head * a.q_strides[1];
    for (int64_t d = 0; d < dim; d += kLanes) {
      Vec v = d < a.head_dim ? load_tail(q, d, a.head_dim) : Vec{};
      store(tile.q + r * dim + d, v * a.scale);
      store(tile.out + r * dim + d, Vec{});
    }
    tile.max[r] = -kInfinity;
    tile.sum[r] = 0;
  }
}

// keys[p][d][lane] = element d of key p * kLanes + lane
template <typename T>
void pack_keys(const T* const* from, int panels, int64_t head_dim, float* to) {
  const int64_t dim = padded(head_dim);
  for (int p = 0; p < panels; ++p) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        rows[i] = d < head_dim ? load_tail(from[p * kLanes + i], d, head_dim) : Vec{};
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (p * dim + d + i) * kLanes, rows[i]);
    }
  }
}

template <typename T>
void pack_values(const T* const* from, int keys, int64_t head_dim, float* to) {
  const int64_t dim = padded(head_dim);
  for (int k = 0; k < keys; ++k) {
    for (int64_t d = 0; d < dim; d += kLanes)
      store(to + k * dim + d, d < head_dim ? load_tail(from[k], d, head_dim) : Vec{});
  }
}

// scores[r][n * kLanes] = q[r] . keys[n]
template <int R, int N>
void multiply_keys(const float* q, const float* keys, int64_t dim, float* scores) {
  Vec acc[R][N] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Vec k[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) k[n] = load(keys + (n * dim + d) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[r][n] += q[r * dim + d] * k[n];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(scores + r * kKeyTile + n * kLanes, acc[r][n]);
}

// out[r][n * kLanes] = decay[r] * out + sum over keys of p[r][key] * values[key]
template <int R, int N>
void multiply_values(const float* p, const float* values, int keys, int64_t dim, const float* decay,
                     float* out) {
  Vec acc[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) acc[r][n] = load(out + r * dim + n * kLanes) * decay[r];
  for (int k = 0; k < keys; ++k) {
    Vec v[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) v[n] = load(values + k * dim + n * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[r][n] += p[r * kKeyTile + k] * v[n];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(out + r * dim + n * kLanes, acc[r][n]);
}

// call f with the row count of each block as a compile-time constant
template <typename F>
void for_row_blocks(int rows, F&& f) {
  int blocks = (rows + kRowBlock - 1) / kRowBlock;
  for (int b = 0; b < blocks; ++b) {
    int begin = rows * b / blocks, end = rows * (b + 1) / blocks;
    [&]<int... R>(std::integer_sequence<int, R...>) {
      (void)((end - begin == R + 1 && (f(std::integral_constant<int, R + 1>{}, begin), true)) ||
             ...);
    }(std::make_integer_sequence<int, kRowBlock>{});
  }
}

void score_tile(const Tile& tile, int rows, int panels, int64_t dim) {
  for_row_blocks(rows, [&](auto R, int r) {
    const float* q = tile.q + r * dim;
    int p = 0;
    for (; p + kVecBlock <= panels; p += kVecBlock)
      multiply_keys<R(), kVecBlock>(q, tile.keys + p * dim * kLanes, dim,
                                    tile.scores + r * kKeyTile + p * kLanes);
    for (; p < panels; ++p)
      multiply_keys<R(), 1>(q, tile.keys + p * dim * kLanes, dim,
                            tile.scores + r * kKeyTile + p * kLanes);
  });
}

void value_tile(const Tile& tile, int rows, int keys, int64_t dim) {
  for_row_blocks(rows, [&](auto R, int r) {
    int64_t d = 0;
    for (; d + kVecBlock * kLanes <= dim; d += kVecBlock * kLanes)
      multiply_values<R(), kVecBlock>(tile.scores + r * kKeyTile, tile.values + d, keys, dim,
                                      tile.decay + r, tile.out + r * dim + d);
    for (; d < dim; d += kLanes)
      multiply_values<R(), 1>(tile.scores + r * kKeyTile, tile.values + d, keys, dim,
                              tile.decay + r, tile.out + r * dim + d);
  });
}

// cap * tanh(x / cap)
inline Vec soft_cap(Vec x, float cap) {
  Vec y = x / cap;
  Vec size = y < 0.0f ? -y : y;
  Vec e = exp(-2.0f * size);
  Vec tanh = (1.0f - e) / (1.0f + e);
  return (y < 0.0f ? -tanh : tanh) * cap;
}

inline VecInt lane_index() {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return VecInt{I...};
  }(std::make_integer_sequence<int, kLanes>{});
}

// Turn row r's scores into weights relative to its new maximum. Keys `first + [0, keys)`.
void softmax_row(const Context& c, const Tile& tile, int r, int first, int keys, int panels) {
  const SparkTreeAttention& a = *c.args;
  float* scores = tile.scores + r * kKeyTile;
  // the row sees relative keys (low, high]
  int high = tile.rows[r].position - first;
  int low = a.window ? high - static_cast<int>(a.window) : -1;
  if (high > keys - 1) high = keys - 1;
  bool masked = high < panels * kLanes - 1 || low >= 0;
  Vec top = splat(tile.max[r]);
  for (int p = 0; p < panels; ++p) {
    Vec x = load(scores + p * kLanes);
    if (a.softcap > 0) x = soft_cap(x, a.softcap);
    if (masked) {
      VecInt key = lane_index() + p * kLanes;
      x = (key <= high) & (key > low) ? x : splat(-kInfinity);
    }
    store(scores + p * kLanes, x);
    top = max(top, x);
  }
  float largest = reduce_max(top);
  // nothing visible so far: any finite reference keeps the weights at 0
  float reference = largest == -kInfinity ? 0.0f : largest;
  Vec total{};
  for (int p = 0; p < panels; ++p) {
    Vec weight = exp(load(scores + p * kLanes) - reference);
    store(scores + p * kLanes, weight);
    total += weight;
  }
  tile.decay[r] = exp(splat(tile.max[r] - reference))[0];
  tile.max[r] = largest;
  tile.sum[r] = tile.sum[r] * tile.decay[r] + reduce_sum(total);
}

template <typename T>
void store_row(T* to, const float* from, float factor, int64_t head_dim) {
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store(to + d, load(from + d) * factor);
  if (d < head_dim) store_some(to + d, load(from + d) * factor, static_cast<int>(head_dim - d));
}

template <typename T>
T* out_row(const Context& c, int32_t s, int64_t token, int64_t head) {
  const SparkTreeAttention& a = *c.args;
  return static_cast<T*>(a.out) + (c.query_offsets[s] + token) * a.out_strides[0] +
         head * a.out_strides[1];
}

template <typename T>
void finish(const Context& c, const Item& item, const Tile& tile, int rows) {
  const int64_t head_dim = c.args->head_dim, dim = padded(head_dim);
  for (int r = 0; r < rows; ++r) {
    const Row& row = tile.rows[r];
    const float* out = tile.out + r * dim;
    if (c.parts[row.sequence] == 1) {
      store_row(out_row<T>(c, row.sequence, row.token, row.head), out, 1.0f / tile.sum[r],
                head_dim);
      continue;
    }
    float* slot = c.slot(row.sequence, row.token, row.head, item.part);
    std::memcpy(slot, out, dim * sizeof(float));
    slot[dim] = tile.max[r];
    slot[dim + 1] = tile.sum[r];
  }
}

template <typename T>
void attend(const Context& c, const Item& item, float* scratch) {
  const SparkTreeAttention& a = *c.args;
  const int64_t dim = padded(a.head_dim), block_size = a.plan->block_size;
  const int64_t head_size = block_size * a.head_dim, block_stride = a.num_kv_heads * head_size;
  Tile tile(scratch, dim);
  const int rows = list_rows(c, item, tile.rows);
  load_queries<T>(c, tile, rows);

  int32_t first_position = INT32_MAX, last_position = 0;
  for (int r = 0; r < rows; ++r) {
    int32_t position = tile.rows[r].position;
    first_position = position < first_position ? position : first_position;
    last_position = position > last_position ? position : last_position;
  }
  int64_t key_begin = item.key_begin, key_end = item.key_end;
  if (key_end > last_position + 1) key_end = last_position + 1;
  if (a.window && key_begin <= first_position - a.window) key_begin = first_position - a.window + 1;

  const int32_t* table = c.tables + c.table_offsets[tile.rows[0].sequence];
  for (int64_t first = key_begin; first < key_end; first += kKeyTile) {
    const int keys = static_cast<int>(key_end - first < kKeyTile ? key_end - first : kKeyTile);
    const int panels = (keys + kLanes - 1) / kLanes;
    const T *k_rows[kKeyTile], *v_rows[kKeyTile];
    for (int i = 0; i < panels * kLanes; ++i) {
      // behind the last key the last one is read again: what lies there may be anything
      int64_t key = first + (i < keys ? i : keys - 1);
      int64_t at = table[key / block_size] * block_stride + item.kv_head * head_size +
                   key % block_size * a.head_dim;
      k_rows[i] = static_cast<const T*>(a.k_cache) + at;
      v_rows[i] = static_cast<const T*>(a.v_cache) + at;
    }
    pack_keys(k_rows, panels, a.head_dim, tile.keys);
    pack_values(v_rows, keys, a.head_dim, tile.values);
    score_tile(tile, rows, panels, dim);
    for (int r = 0; r < rows; ++r) softmax_row(c, tile, r, static_cast<int>(first), keys, panels);
    value_tile(tile, rows, keys, dim);
  }
  finish<T>(c, item, tile, rows);
}

// out = the partial results of one token's heads, weighted by their share of the softmax
template <typename T>
void merge(const Context& c, int32_t s, int64_t token) {
  const int64_t head_dim = c.args->head_dim, dim = padded(head_dim);
  const int parts = c.parts[s];
  alignas(64) float out[256];
  for (int64_t h = 0; h < c.args->num_heads; ++h) {
    float largest = -kInfinity, sum = 0;
    for (int p = 0; p < parts; ++p) {
      float m = c.slot(s, token, h, p)[dim];
      largest = m > largest ? m : largest;
    }
    for (int64_t d = 0; d < dim; d += kLanes) store(out + d, Vec{});
    for (int p = 0; p < parts; ++p) {
      const float* slot = c.slot(s, token, h, p);
      float weight = exp(splat(slot[dim] - largest))[0];
      sum += weight * slot[dim + 1];
      for (int64_t d = 0; d < dim; d += kLanes)
        store(out + d, load(out + d) + load(slot + d) * weight);
    }
    store_row(out_row<T>(c, s, token, h), out, 1.0f / sum, head_dim);
  }
}

template <typename T>
Kernels kernels_of() {
  return {write<T>, attend<T>, merge<T>};
}

Kernels kernels(SparkDType dtype) {
  return dtype == SPARK_BF16 ? kernels_of<BFloat16>() : kernels_of<float>();
}

}  // namespace
