// One launch for all layers: a thread reads its part of a source block once and writes it to all
// destinations. Block pointers travel as a kernel parameter, so nothing is copied to the device.
#include <cuda_runtime.h>

#include <cstdint>

#include "spark/kv_fork.h"

namespace {

constexpr int kThreads = 256;
constexpr int kUnitsPerThread = 2;
constexpr int kMaxBuffers = 256;

struct Buffers {
  void* data[kMaxBuffers];
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
    fork_blocks(const __grid_constant__ Buffers buffers, Shape shape,
                const int64_t* __restrict__ pairs, int64_t num_pairs) {
  const int64_t first = blockIdx.x, source = pairs[3 * first];
  if (first > 0 && pairs[3 * (first - 1)] == source) return;
  U* const base = static_cast<U*>(buffers.data[blockIdx.z]);
  const int64_t block = shape.block;

  U held[kUnitsPerThread];
  int32_t at[kUnitsPerThread], token[kUnitsPerThread];
#pragma unroll
  for (int i = 0; i < kUnitsPerThread; ++i) {
    at[i] = (blockIdx.y * kUnitsPerThread + i) * kThreads + threadIdx.x;
    token[i] = at[i] < shape.block ? at[i] % shape.run / shape.token : INT32_MAX;
    // unused slots are read as well: they lie inside the block
    if (at[i] < shape.block) held[i] = base[source * block + at[i]];
  }
  for (int64_t p = first; p < num_pairs && pairs[3 * p] == source; ++p) {
    U* const to = base + pairs[3 * p + 1] * block;
    const int64_t used = pairs[3 * p + 2];
#pragma unroll
    for (int i = 0; i < kUnitsPerThread; ++i) {
      if (token[i] < used) to[at[i]] = held[i];
    }
  }
}

template <typename U>
cudaError_t launch(const SparkKvFork& a, cudaStream_t stream) {
  const int64_t token = a.token_bytes / sizeof(U), run = a.tokens * token, block = a.runs * run;
  const int64_t part = kThreads * kUnitsPerThread;
  if (block > INT32_MAX - part) return cudaErrorInvalidValue;
  const Shape shape{static_cast<int32_t>(block), static_cast<int32_t>(run),
                    static_cast<int32_t>(token)};
  const unsigned parts = static_cast<unsigned>((block + part - 1) / part);
  for (int64_t begin = 0; begin < a.num_buffers; begin += kMaxBuffers) {
    Buffers buffers{};
    unsigned n = 0;
    for (; n < kMaxBuffers && begin + n < a.num_buffers; ++n)
      buffers.data[n] = a.buffers[begin + n];
    const dim3 grid(static_cast<unsigned>(a.num_pairs), parts, n);
    fork_blocks<U><<<grid, kThreads, 0, stream>>>(buffers, shape, a.pairs, a.num_pairs);
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
