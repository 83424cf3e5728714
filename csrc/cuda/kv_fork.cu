// One launch for all layers: a thread reads its part of a source block once and writes it to all
// destinations. The buffers' addresses stay on the device from fork to fork; the pairs travel as
// kernel parameters, so nothing is copied to the device and the host never waits.
#include <cuda_runtime.h>

#include <cstdint>

#include "spark/kv_fork.h"

namespace {

constexpr int kThreads = 256;
// of one launch; the parameters of a kernel must fit 4 KiB
constexpr int kMaxPairs = 240;
constexpr unsigned kMaxGrid = 65535;

struct Pair {
  int32_t source;
  int32_t destination;
  int32_t used;
};

struct Work {
  Pair pairs[kMaxPairs];
  int32_t first[kMaxPairs + 1];  // of the pairs of each source, and where the last end
};

// Sizes in units of type U.
struct Shape {
  int32_t block;
  int32_t run;
  int32_t token;
};

// grid: (part of a block, buffer, source)
template <typename U>
__global__ void __launch_bounds__(kThreads)
    fork_blocks(const __grid_constant__ Work work, void* const* buffers, const Shape shape) {
  const int32_t at = blockIdx.x * kThreads + threadIdx.x;
  if (at >= shape.block) return;
  U* const base = static_cast<U*>(buffers[blockIdx.y]) + at;
  const int begin = work.first[blockIdx.z], end = work.first[blockIdx.z + 1];
  const int32_t token = at % shape.run / shape.token;
  int32_t most = 0;
  for (int p = begin; p < end; ++p) most = max(most, work.pairs[p].used);
  if (token >= most) return;
  const int64_t block = shape.block;
  const U held = base[work.pairs[begin].source * block];
  for (int p = begin; p < end; ++p) {
    if (token < work.pairs[p].used) base[work.pairs[p].destination * block] = held;
  }
}

// Fills in the next launch; returns its number of sources and moves `pair` past what it takes.
int gather(const SparkKvFork& a, int64_t& pair, Work& work) {
  int sources = 0, n = 0;
  for (; n < kMaxPairs && pair < a.num_pairs; ++n, ++pair) {
    const int64_t* from = a.pairs + 3 * pair;
    work.pairs[n] = {static_cast<int32_t>(from[0]), static_cast<int32_t>(from[1]),
                     static_cast<int32_t>(from[2])};
    if (n == 0 || work.pairs[n].source != work.pairs[n - 1].source) work.first[sources++] = n;
  }
  work.first[sources] = n;
  return sources;
}

template <typename U>
cudaError_t launch(const SparkKvFork& a, void* const* buffers, cudaStream_t stream) {
  const int64_t token = a.token_bytes / sizeof(U), run = a.tokens * token, block = a.runs * run;
  if (block > INT32_MAX - kThreads || a.num_buffers > kMaxGrid) return cudaErrorInvalidValue;
  const Shape shape{static_cast<int32_t>(block), static_cast<int32_t>(run),
                    static_cast<int32_t>(token)};
  cudaLaunchConfig_t config = {};
  config.stream = stream;
  config.blockDim = dim3(kThreads);
  for (int64_t pair = 0; pair < a.num_pairs;) {
    Work work;
    const unsigned sources = gather(a, pair, work);
    config.gridDim = dim3(static_cast<unsigned>((block + kThreads - 1) / kThreads),
                          static_cast<unsigned>(a.num_buffers), sources);
    const cudaError_t error = cudaLaunchKernelEx(&config, fork_blocks<U>, work, buffers, shape);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// whether every token of every buffer starts at a multiple of `size` bytes
bool aligned(const SparkKvFork& a, uint64_t size) {
  uint64_t low = static_cast<uint64_t>(a.token_bytes);
  for (int64_t b = 0; b < a.num_buffers; ++b) low |= reinterpret_cast<uint64_t>(a.buffers[b]);
  return low % size == 0;
}

}  // namespace

extern "C" int spark_cuda_kv_fork(const SparkKvFork* args, void* const* on_device, void* stream) {
  const SparkKvFork& a = *args;
  if (a.num_pairs == 0 || a.num_buffers == 0 || a.runs * a.tokens * a.token_bytes == 0) return 0;
  const auto s = static_cast<cudaStream_t>(stream);
  if (aligned(a, 16)) return launch<uint4>(a, on_device, s);
  if (aligned(a, 4)) return launch<uint32_t>(a, on_device, s);
  return launch<uint8_t>(a, on_device, s);
}

extern "C" int spark_cuda_upload(void* to, const void* from, int64_t bytes, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  // a graph would copy again at its replay, when `from` is gone
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (const cudaError_t error = cudaStreamIsCapturing(s, &status)) return error;
  if (status != cudaStreamCaptureStatusNone) return cudaErrorStreamCaptureUnsupported;
  if (const cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, s)) {
    return error;
  }
  // other streams read it without asking
  return cudaStreamSynchronize(s);
}
