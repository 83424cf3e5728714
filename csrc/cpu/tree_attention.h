// Between the scheduler (tree_attention.cpp) and its kernels, one set per instruction set.
#pragma once

#include <cstdint>

#include "spark/tree_attention.h"

namespace spark::attention {

constexpr int kRowTile = 128;  // query rows of one work item
constexpr int kKeyTile = 64;   // keys packed at a time

inline int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// The rows of one sequence: every query token x every query head of one key/value head.
// Rows of a run are those of its members, one after the other, token-major.
struct Item {
  int32_t kv_head;
  int32_t run;
  int32_t row_begin, row_end;
  int32_t key_begin, key_end;
  int32_t part;  // index among the partial results of each member
};

// What all items of one call share.
struct Context {
  const SparkTreeAttention* args;
  const int32_t* query_offsets;
  const int32_t* lengths;
  const int32_t* table_offsets;
  const int32_t* tables;
  const int32_t* order;
  const SparkRun* runs;
  const int32_t* parts;  // [num_sequences] partial results of each row
  const int64_t* slots;  // [num_sequences] first slot of each sequence in `partial`
  float* partial;        // [slots, padded + 2]: unnormalised output, maximum, sum

  int64_t query_length(int32_t s) const { return query_offsets[s + 1] - query_offsets[s]; }
  // slot of (token of s, head, part)
  float* slot(int32_t s, int64_t token, int64_t head, int64_t part) const {
    int64_t row = (token * args->num_heads + head) * parts[s] + part;
    return partial + (slots[s] + row) * (padded(args->head_dim) + 2);
  }
};

inline int64_t scratch_floats(int64_t head_dim) {
  int64_t row = 2 * padded(head_dim) + kKeyTile + 16;
  return kRowTile * row + 2 * kKeyTile * padded(head_dim);
}

// `token` counts the sequence's queries.
struct Kernels {
  void (*write)(const Context&, int32_t sequence, int64_t token);
  void (*attend)(const Context&, const Item&, float* scratch);
  void (*merge)(const Context&, int32_t sequence, int64_t token);
};

// 64-byte aligned scratch; `dtype` is SPARK_F32 or SPARK_BF16
Kernels kernels_plain(SparkDType dtype);
Kernels kernels_avx2(SparkDType dtype);
Kernels kernels_avx512(SparkDType dtype);
Kernels kernels_avx512bf16(SparkDType dtype);

}  // namespace spark::attention
