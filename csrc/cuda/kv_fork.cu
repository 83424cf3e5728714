// One launch for all layers: a thread reads its part of a source block once and writes it to all
// destinations. Pointers and pairs travel as kernel parameters, so nothing is copied to the device
// and the host never waits.
#include <cuda_runtime.h>

#include <cstdint>

#include "spark/kv_fork.h"

namespace {

constexpr int kThreads = 256;
constexpr int kUnitsPerThread = 2;
// of one launch; the parameters of a kernel must fit 4 KiB
constexpr int kMaxBuffers = 256;
constexpr int kMaxPairs = 128;

struct Pair {
  int32_t source;
  int32_t destination;
  int32_t used;
};

struct Work {
  void* buffers[kMaxBuffers];
  Pair pairs[kMaxPairs];
  int32_t num_pairs;
};

// Sizes in units of type U.
struct Shape {
  int32_t block;
  int32_t run;
  int32_t token;
};

// grid: (pair, part of a block, buffer); the first pair of a source serves all of them
template <typename U>
__global__ void __launch_bounds__(kThreads)
    fork_blocks(const __grid_constant__ Work work, const Shape shape) {
  const int first = blockIdx.x, source = work.pairs[first].source;
  if (first > 0 && work.pairs[first - 1].source == source) return;
  U* const base = static_cast<U*>(work.buffers[blockIdx.z]);
  const int64_t block = shape.block;

  int end = first, most = 0;
  for (; end < work.num_pairs && work.pairs[end].source == source; ++end)
    most = max(most, work.pairs[end].used);

  U held[kUnitsPerThread];
  int32_t at[kUnitsPerThread], token[kUnitsPerThread];
#pragma unroll
  for (int i = 0; i < kUnitsPerThread; ++i) {
    at[i] = (blockIdx.y * kUnitsPerThread + i) * kThreads + threadIdx.x;
    token[i] = at[i] < shape.block ? at[i] % shape.run / shape.token : INT32_MAX;
    if (token[i] < most) held[i] = base[source * block + at[i]];
  }
  for (int p = first; p < end; ++p) {
    U* const to = base + work.pairs[p].destination * block;
    const int32_t used = work.pairs[p].used;
#pragma unroll
    for (int i = 0; i < kUnitsPerThread; ++i) {
      if (token[i] < used) to[at[i]] = held[i];
    }
  }
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename U>
cudaError_t launch(const SparkKvFork& a, cudaStream_t stream) {
  const int64_t token = a.token_bytes / sizeof(U), run = a.tokens * token, block = a.runs * run;
  const int64_t part = kThreads * kUnitsPerThread;
  if (block > INT32_MAX - part) return cudaErrorInvalidValue;
  const Shape shape{static_cast<int32_t>(block), static_cast<int32_t>(run),
                    static_cast<int32_t>(token)};
  const unsigned parts = static_cast<unsigned>((block + part - 1) / part);
  for (int64_t pair = 0; pair < a.num_pairs; pair += kMaxPairs) {
    Work work;
    work.num_pairs = static_cast<int32_t>(least(kMaxPairs, a.num_pairs - pair));
    for (int i = 0; i < work.num_pairs; ++i) {
      const int64_t* from = a.pairs + 3 * (pair + i);
      work.pairs[i] = {static_cast<int32_t>(from[0]), static_cast<int32_t>(from[1]),
                       static_cast<int32_t>(from[2])};
    }
    for (int64_t buffer = 0; buffer < a.num_buffers; buffer += kMaxBuffers) {
      const unsigned n = static_cast<unsigned>(least(kMaxBuffers, a.num_buffers - buffer));
      for (unsigned i = 0; i < n; ++i) work.buffers[i] = a.buffers[buffer + i];
      fork_blocks<U><<<dim3(work.num_pairs, parts, n), kThreads, 0, stream>>>(work, shape);
    }
  }
  return cudaGetLastError();
}

// whether every token of every buffer starts at a multiple of `size` bytes
bool aligned(const SparkKvFork& a, uint64_t size) {
  uint64_t low = static_cast<uint64_t>(a.token_bytes);
  for (int64_t b = 0; b < a.num_buffers; ++b) low |= reinterpret_cast<uint64_t>(a.buffers[b]);
  return low % size == 0;
}

}  // namespace

extern "C" int spark_cuda_kv_fork(const SparkKvFork* args, void* stream) {
  const SparkKvFork& a = *args;
  if (a.num_pairs == 0 || a.num_buffers == 0 || a.runs * a.tokens * a.token_bytes == 0) return 0;
  const auto s = static_cast<cudaStream_t>(stream);
  if (aligned(a, 16)) return launch<uint4>(a, s);
  if (aligned(a, 4)) return launch<uint32_t>(a, s);
  return launch<uint8_t>(a, s);
}
