// Copy the used part of partly filled KV blocks to the blocks of forked children, in all layers.
#pragma once

#include <cstdint>

// One block of one buffer is `runs` stretches of `tokens` tokens, `token_bytes` each: HND has a
// stretch a head, NHD has one. Pairs are [num_pairs, 3] (source block, destination block, tokens),
// those of one source next to each other. Destinations are distinct and no source is one.
struct SparkKvFork {
  void* const* buffers;  // the array is on the host, the buffers on their device
  int64_t num_buffers;
  const int64_t* pairs;  // on the host
  int64_t num_pairs;
  int64_t runs;
  int64_t tokens;
  int64_t token_bytes;
};

extern "C" void spark_cpu_kv_fork(const SparkKvFork* args);

// `on_device` holds the same addresses as `buffers`, on the device; `stream` is a cudaStream_t.
// Returns a cudaError_t.
extern "C" int spark_cuda_kv_fork(const SparkKvFork* args, void* const* on_device, void* stream);
// Copies from the host, which may be changed as soon as this returns. Returns a cudaError_t.
extern "C" int spark_cuda_upload(void* to, const void* from, int64_t bytes, void* stream);
