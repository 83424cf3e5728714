// Sampling and scoring in one read of the logits; the maths is in spark_kernels/score/README.md.
#pragma once

#include <cstdint>

#include "spark/dtype.h"

// Pointers marked "or null" switch their feature off.
struct SparkScore {
  const void* logits;  // [rows, vocab], fp32, bf16 or fp16
  SparkDType dtype;
  int64_t rows, vocab;       // vocab < 2^20
  int64_t stride;            // elements from one row to the next
  const float* temperature;  // [rows] or null = 1; 0 = greedy
  const int32_t* top_k;      // [rows] or null; 0 = off
  const float* top_p;        // [rows] or null; 1 = off
  const float* min_p;        // [rows] or null; 0 = off
  const uint32_t* allowed;   // [rows, ceil(vocab / 32)] bits, or null = all
  const int64_t* seed;       // [rows] or null = 0
  const int64_t* position;   // [rows] or null = 0
  const int64_t* given;      // [rows] or null; -1 = sample
  int64_t* tokens;           // [rows], and the same for all that follow
  float* logprob;
  float* log_kept_mass;
  float* entropy;
  float* varentropy;
  float* entropy_tempered;  // or null
  float* varentropy_tempered;
};

// Returns 0, or 1 without touching the outputs when a value is out of range.
extern "C" int spark_cpu_score(const SparkScore* args);

// A CUDA device writes token -1 and NaN scores in a row whose values are out of range. `workspace`
// is on the device, `stream` a cudaStream_t. Returns a cudaError_t.
extern "C" int spark_cuda_score(const SparkScore* args, void* workspace, void* stream);
// Bytes of the workspace; its contents do not matter.
extern "C" int64_t spark_cuda_score_workspace(const SparkScore* args);
