#include "spark/kv_fork.h"

#include <cstring>

namespace {

// bytes that pay for waking the threads
constexpr int64_t kParallelBytes = 1 << 18;

// one stretch at a time, so that the source stays in the first cache for all destinations
void fork_buffer(const SparkKvFork& a, char* buffer) {
  const int64_t run_bytes = a.tokens * a.token_bytes, block_bytes = a.runs * run_bytes;
  for (int64_t begin = 0, end; begin < a.num_pairs; begin = end) {
    const int64_t source = a.pairs[3 * begin];
    for (end = begin + 1; end < a.num_pairs && a.pairs[3 * end] == source;) ++end;
    for (int64_t run = 0; run < a.runs; ++run) {
      const char* from = buffer + source * block_bytes + run * run_bytes;
      for (int64_t p = begin; p < end; ++p) {
        char* to = buffer + a.pairs[3 * p + 1] * block_bytes + run * run_bytes;
        std::memcpy(to, from, a.pairs[3 * p + 2] * a.token_bytes);
      }
    }
  }
}

}  // namespace

extern "C" void spark_cpu_kv_fork(const SparkKvFork* args) {
  const SparkKvFork& a = *args;
  int64_t tokens = 0;
  for (int64_t p = 0; p < a.num_pairs; ++p) tokens += a.pairs[3 * p + 2];
  const int64_t bytes = tokens * a.token_bytes * a.runs * a.num_buffers;
#pragma omp parallel for schedule(static) if (bytes > kParallelBytes)
  for (int64_t b = 0; b < a.num_buffers; ++b) fork_buffer(a, static_cast<char*>(a.buffers[b]));
}
