// Paged causal attention over sequences that share blocks. Torch-free C ABI.
#pragma once

#include <cstdint>

#include "spark/dtype.h"
#include "spark/plan.h"

// Strides in elements; the last axis (head_dim) of every tensor is contiguous.
struct SparkTreeAttention {
  const void* q;  // [num_tokens, num_heads, head_dim]
  const void* k;  // [num_tokens, num_kv_heads, head_dim]
  const void* v;
  void* k_cache;  // [num_blocks, num_kv_heads, block_size, head_dim], contiguous
  void* v_cache;
  void* out;              // [num_tokens, num_heads, head_dim]
  const SparkPlan* plan;  // on the host
  int64_t q_strides[2];   // token, head
  int64_t k_strides[2];
  int64_t v_strides[2];
  int64_t out_strides[2];
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t window;  // 0 = all
  float scale;
  float softcap;     // 0 = off
  SparkDType dtype;  // of q, k, v, the caches and out: SPARK_F32 or SPARK_BF16
};

extern "C" void spark_cpu_tree_attention(const SparkTreeAttention* args);
