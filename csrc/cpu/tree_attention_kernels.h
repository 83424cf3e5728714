// The kernels of tree_attention, compiled once per instruction set by tree_attention_<isa>.cpp.
#pragma once

#include "tree_attention_softmax.h"
#include "tree_attention_tiles.h"

namespace {

using spark::attention::Context;
using spark::attention::Item;
using spark::attention::Kernels;
using spark::attention::kRowTile;

// up to here lanes hold keys, above they hold rows
constexpr int kFewRows = 8;

// whether products take two bfloat16 at a time
#if defined(__AVX512BF16__)
template <typename T>
constexpr bool kPairs = std::is_same_v<T, BFloat16>;
#else
template <typename T>
constexpr bool kPairs = false;
#endif

// Where a row comes from and how far it sees.
struct Row {
  int32_t sequence;
  int32_t token;  // in the sequence's queries
  int32_t head;
  int32_t position;
};

// Carved from one thread's scratch; R rows, D = padded head_dim.
struct Tile {
  float* q;       // [R, D] floats, or bfloat16 for paired products; packed if many
  float* out;     // [R, D] unnormalised
  float* scores;  // [R, kKeyTile], or [kKeyTile, R] if many
  float* keys;    // [kKeyTile, D] packed, or as floats
  float* values;  // [kKeyTile, D] as floats
  float* max;     // [R] running softmax
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

// Element offset of (block, head, slot) in a cache.
inline int64_t cache_at(const SparkTreeAttention& a, int64_t block, int64_t head, int64_t slot) {
  return ((block * a.num_kv_heads + head) * a.plan->block_size + slot) * a.head_dim;
}

template <typename T>
void write(const Context& c, int32_t s, int64_t token) {
  const SparkTreeAttention& a = *c.args;
  const int64_t block_size = a.plan->block_size;
  const int64_t position = c.lengths[s] - c.query_length(s) + token;
  const int64_t block = c.tables[c.table_offsets[s] + position / block_size];
  const int64_t t = c.query_offsets[s] + token;
  for (int64_t h = 0; h < a.num_kv_heads; ++h) {
    const int64_t to = cache_at(a, block, h, position % block_size);
    const T* k = static_cast<const T*>(a.k) + t * a.k_strides[0] + h * a.k_strides[1];
    const T* v = static_cast<const T*>(a.v) + t * a.v_strides[0] + h * a.v_strides[1];
    std::memcpy(static_cast<T*>(a.k_cache) + to, k, a.head_dim * sizeof(T));
    std::memcpy(static_cast<T*>(a.v_cache) + to, v, a.head_dim * sizeof(T));
  }
}

// Fill the rows of the item; return their number.
int list_rows(const Context& c, const Item& item, Row* rows) {
  const SparkRun& run = c.runs[item.run];
  const int32_t group = static_cast<int32_t>(c.args->num_heads / c.args->num_kv_heads);
  int n = 0;
  int32_t before = 0;
  for (int32_t i = run.first; i < run.first + run.count && before < item.row_end; ++i) {
    const int32_t s = c.order[i], queries = static_cast<int32_t>(c.query_length(s));
    const int32_t all = queries * group, wanted = item.row_end - before;
    const int32_t end = wanted < all ? wanted : all;
    for (int32_t r = item.row_begin > before ? item.row_begin - before : 0; r < end; ++r) {
      const int32_t token = r / group;
      rows[n++] = {s, token, item.kv_head * group + r % group, c.lengths[s] - queries + token};
    }
    before += all;
  }
  return n;
}

// Number of vectors that hold n rows or keys.
inline int panels_of(int n) { return (n + kLanes - 1) / kLanes; }

template <typename T>
void load_queries(const Context& c, const Tile& tile, int rows) {
  const SparkTreeAttention& a = *c.args;
  const int64_t dim = padded(a.head_dim);
  // elements of products: two bfloat16, or one number
  using Element = std::conditional_t<kPairs<T>, float, T>;
  const int64_t elements = kPairs<T> ? a.head_dim / 2 : a.head_dim;
  const Element* q[kRowTile];
  for (int r = 0; r < rows; ++r) {
    const Row& row = tile.rows[r];
    q[r] = reinterpret_cast<const Element*>(
        static_cast<const T*>(a.q) + (c.query_offsets[row.sequence] + row.token) * a.q_strides[0] +
        row.head * a.q_strides[1]);
    for (int64_t d = 0; d < dim; d += kLanes) store(tile.out + r * dim + d, Vec{});
  }
  // lanes that are left over do as the last row does
  const int lanes = panels_of(rows) * kLanes;
  for (int r = rows; r < lanes; ++r) {
    q[r] = q[rows - 1];
    tile.rows[r] = tile.rows[rows - 1];
  }
  for (int r = 0; r < lanes; r += kLanes) {
    store(tile.max + r, splat(-kInfinity));
    store(tile.sum + r, Vec{});
  }
  if (rows > kFewRows) {
    pack_rows(q, panels_of(rows), elements, tile.q);
  } else {
    for (int r = 0; r < rows; ++r) copy_row(q[r], elements, tile.q + r * padded(elements));
  }
}

// Addresses of `keys` keys from `first` on. Behind the last one it is read again: what lies there
// may be anything.
template <typename T>
void locate(const Context& c, const Item& item, int32_t s, int64_t first, int keys,
            const T* (&k)[kKeyTile], const T* (&v)[kKeyTile]) {
  const SparkTreeAttention& a = *c.args;
  const int32_t* table = c.tables + c.table_offsets[s];
  const int64_t block_size = a.plan->block_size;
  int64_t block = first / block_size, slot = first % block_size;
  for (int i = 0; i < keys; ++block, slot = 0) {
    int64_t at = cache_at(a, table[block], item.kv_head, slot);
    for (; i < keys && slot < block_size; ++i, ++slot, at += a.head_dim) {
      k[i] = static_cast<const T*>(a.k_cache) + at;
      v[i] = static_cast<const T*>(a.v_cache) + at;
    }
  }
  for (int i = keys; i < kKeyTile; ++i) k[i] = k[keys - 1];
}

template <typename Product>
void softmax_rows(const Context& c, const Tile& tile, int rows, int64_t first, int keys) {
  const SparkTreeAttention& a = *c.args;
  for (int r = 0; r < rows; ++r) {
    const int position = tile.rows[r].position - static_cast<int>(first);
    const int low = a.window ? position - static_cast<int>(a.window) : -1;
    softmax_row<Product>(tile.scores + r * kKeyTile, panels_of(keys), low,
                         position < keys ? position : keys - 1, a.scale, a.softcap, tile.max[r],
                         tile.sum[r], tile.decay[r]);
  }
}

// the same for rows in lanes
template <typename Product>
void softmax_panels(const Context& c, const Tile& tile, int rows, int64_t first, int keys) {
  const SparkTreeAttention& a = *c.args;
  const int64_t stride = panels_of(rows) * kLanes;
  for (int r = 0; r < rows; r += kLanes) {
    VecInt low, high;
    bool masked = false;
    for (int i = 0; i < kLanes; ++i) {
      high[i] = tile.rows[r + i].position - static_cast<int32_t>(first);
      low[i] = a.window ? high[i] - static_cast<int32_t>(a.window) : -1;
      masked |= high[i] < keys - 1 || low[i] >= 0;
    }
    softmax_lanes<Product>(tile.scores + r, stride, keys, masked, low, high, a.scale, a.softcap,
                           tile.max + r, tile.sum + r, tile.decay + r);
  }
}

// Scores and softmax of one tile of keys, given as elements of products; return the weights.
template <typename Product>
Weights weigh_many(const Context& c, const Tile& tile, int rows, int64_t first, int keys,
                   const float* const* k, int64_t elements) {
  const int panels = panels_of(rows);
  const int64_t stride = panels * kLanes;
  score_packed<Product>(k, tile.q, keys, panels, elements, tile.scores, stride);
  softmax_panels<Product>(c, tile, rows, first, keys);
  return {tile.scores, 1, stride};
}

// One tile of keys for all rows.
template <typename T>
void attend_tile(const Context& c, const Tile& tile, int rows, int64_t first, int keys,
                 const T* const* k, const T* const* v) {
  const int64_t head_dim = c.args->head_dim;
  const float* floats[kKeyTile];
  Weights weights{tile.scores, kKeyTile, 1};
  if (rows <= kFewRows) {
    const int panels = panels_of(keys);
    float_rows(k, panels * kLanes, head_dim, tile.keys, floats);
    score_rows(tile.q, floats, rows, panels, head_dim, tile.scores);
    softmax_rows<FloatProduct>(c, tile, rows, first, keys);
  } else {
    float_rows(k, keys, head_dim, tile.keys, floats);
    weights = weigh_many<FloatProduct>(c, tile, rows, first, keys, floats, head_dim);
  }
  float_rows(v, keys, head_dim, tile.values, floats);
  add_values<FloatProduct>(weights, floats, rows, keys, head_dim, tile.decay, tile.out);
}

#if defined(__AVX512BF16__)
// The same with two bfloat16 a product; weights are rounded to bfloat16.
inline void attend_tile(const Context& c, const Tile& tile, int rows, int64_t first, int keys,
                        const BFloat16* const* k, const BFloat16* const* v) {
  const int64_t head_dim = c.args->head_dim, elements = head_dim / 2;
  const float* const* key_pairs = reinterpret_cast<const float* const*>(k);
  Weights weights{tile.scores, kKeyTile, 1};
  if (rows <= kFewRows) {
    const int panels = panels_of(keys);
    const float* q[kFewRows];
    for (int r = 0; r < rows; ++r) q[r] = tile.q + r * padded(elements);
    pack_rows(key_pairs, panels, elements, tile.keys);
    score_packed<PairProduct>(q, tile.keys, rows, panels, elements, tile.scores, kKeyTile);
    softmax_rows<PairProduct>(c, tile, rows, first, keys);
  } else {
    weights = weigh_many<PairProduct>(c, tile, rows, first, keys, key_pairs, elements);
  }
  const float* pairs[kKeyTile / 2];
  pair_rows(v, keys, head_dim, tile.values, pairs);
  add_values<PairProduct>(weights, pairs, rows, (keys + 1) / 2, head_dim, tile.decay, tile.out);
}
#endif

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
    } else {
      float* slot = c.slot(row.sequence, row.token, row.head, item.part);
      std::memcpy(slot, out, dim * sizeof(float));
      slot[dim] = tile.max[r];
      slot[dim + 1] = tile.sum[r];
    }
  }
}

template <typename T>
void attend(const Context& c, const Item& item, float* scratch) {
  const SparkTreeAttention& a = *c.args;
  const Tile tile(scratch, padded(a.head_dim));
  const int rows = list_rows(c, item, tile.rows);
  load_queries<T>(c, tile, rows);

  int32_t earliest = INT32_MAX, latest = 0;
  for (int r = 0; r < rows; ++r) {
    const int32_t position = tile.rows[r].position;
    earliest = position < earliest ? position : earliest;
    latest = position > latest ? position : latest;
  }
  int64_t begin = item.key_begin, end = item.key_end;
  if (end > latest + 1) end = latest + 1;
  if (a.window && begin <= earliest - a.window) begin = earliest - a.window + 1;
  for (int64_t first = begin; first < end; first += kKeyTile) {
    const int64_t left = end - first;
    const int keys = left < kKeyTile ? static_cast<int>(left) : kKeyTile;
    const T *k[kKeyTile], *v[kKeyTile];
    locate(c, item, tile.rows[0].sequence, first, keys, k, v);
    attend_tile(c, tile, rows, first, keys, k, v);
  }
  finish<T>(c, item, tile, rows);
}

// out = the partial results of one token's heads, weighted by their share of the softmax
template <typename T>
void merge(const Context& c, int32_t s, int64_t token) {
  const int64_t head_dim = c.args->head_dim, dim = padded(head_dim);
  const int parts = c.parts[s];
  const float factor = score_factor(c.args->scale, c.args->softcap);
  alignas(64) float out[256];
  for (int64_t h = 0; h < c.args->num_heads; ++h) {
    float largest = -kInfinity, sum = 0;
    for (int p = 0; p < parts; ++p) {
      const float m = c.slot(s, token, h, p)[dim];
      largest = m > largest ? m : largest;
    }
    for (int64_t d = 0; d < dim; d += kLanes) store(out + d, Vec{});
    for (int p = 0; p < parts; ++p) {
      const float* slot = c.slot(s, token, h, p);
      const float weight = exp(splat((slot[dim] - largest) * factor))[0];
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
