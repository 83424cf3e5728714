// The work list of an attention kernel on a GPU as int32 words: this header, then the arrays whose
// word offsets it holds. It depends on the plan alone and stays valid while sequences only grow.
#pragma once

#include <cstdint>

#include "spark/plan.h"

struct SparkSchedule {
  int32_t num_items;
  int32_t items;       // [num_items] SparkItem, the most work first
  int32_t order;       // [num_tokens] tokens, those of a run next to each other
  int32_t parts;       // [num_tokens] partial results that a token's rows merge
  int32_t slots;       // [num_tokens] first partial result of a token
  int32_t num_slots;   // partial results of all tokens that have several
  int32_t growth;      // tokens that every sequence may gain before a new schedule is due
  int32_t words;       // length of the whole schedule
  int32_t table_rows;  // block tables follow the header: [table_rows, table_width]
  int32_t table_width;
  int32_t pad[6];  // the tables start at a multiple of 16 words
};

// Rows are the query tokens of a run times the query heads of one key/value head, token-major.
struct SparkItem {
  int32_t table;  // word offset of the block table of the run's first sequence
  int32_t first;  // of the run's tokens in `order`
  int32_t row_begin, row_end;
  int32_t key_begin, key_end;  // positions; the rows' own positions limit them further
  int32_t part;                // index among the partial results of each row
  int32_t own;                 // 1 = the rows belong to one sequence, whose new keys lie here
};

struct SparkScheduleOptions {
  int32_t group;        // query heads of one key/value head
  int32_t tokens;       // rows of q; those behind the plan's tokens get an item without keys
  int32_t table_rows;   // at least; 0 = as many as sequences
  int32_t table_width;  // at least; 0 = as the longest table
  int32_t headroom;     // tokens to prepare for behind the longest run of each sequence
  int32_t small_rows;   // rows of a small tile: one sequence's query heads
  int32_t large_rows;   // rows of a large tile: siblings together, or many queries
  int32_t small_keys;   // keys of one item, doubled until a run has at most `most_parts`
  int32_t large_keys;
  int32_t most_parts;
};
