// One step's batch as int32 words: this header, then the arrays whose word offsets it holds.
// Host structures write it; the attention kernels of every device read it.
#pragma once

#include <cstdint>

constexpr int32_t kSparkPlanMagic = 0x53504c31;

struct SparkPlan {
  int32_t magic;
  int32_t words;  // length of the whole plan
  int32_t num_sequences;
  int32_t num_tokens;  // sum of the query lengths
  int32_t num_blocks;  // of the pool; every block id is below it
  int32_t block_size;
  int32_t num_runs;
  int32_t query_offsets;  // [num_sequences + 1] first token of each sequence
  int32_t lengths;        // [num_sequences] tokens of each sequence, its queries included
  int32_t table_offsets;  // [num_sequences + 1]
  int32_t tables;         // [table_offsets[num_sequences]] block ids
  int32_t order;          // [num_sequences] sequence indices; the members of a run are neighbours
  int32_t runs;           // [num_runs] SparkRun, ancestors before descendants
};

// Blocks [block_begin, block_end) of the tables of order[first .. first + count) are the same.
struct SparkRun {
  int32_t first;
  int32_t count;
  int32_t block_begin;
  int32_t block_end;
};
