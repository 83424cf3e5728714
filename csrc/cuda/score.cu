// Two launches: every warp adds up a chunk of a row, then a block finishes each row.
#include <cuda_runtime.h>

#include "score_finish.cuh"

namespace {

// their chunks take 32 KiB of shared memory
template <typename T>
constexpr int kChunksPerBlock = 32 / sizeof(T) / 2;

template <typename T>
__global__ void __launch_bounds__(kChunksPerBlock<T>* kWarp)
    measure(const __grid_constant__ SparkScore args, const int chunks, Chunk* parts) {
  __shared__ Piece<T> space[kChunksPerBlock<T>][Held<T>::kPieces];
  const int blocks = (chunks + kChunksPerBlock<T> - 1) / kChunksPerBlock<T>;
  const int64_t r = blockIdx.x / blocks;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int c = blockIdx.x % blocks * kChunksPerBlock<T> + warp;
  if (c >= chunks) return;
  const Logits<T> logits(args, r);
  const Chunk out =
      Held<T>(logits, c, space[warp], lane)
          .measure(scale_of(temperature_of(args, r)), args.entropy_tempered != nullptr);
  if (lane == 0) parts[r * chunks + c] = out;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish(const __grid_constant__ SparkScore args, const int chunks, const Chunk* parts) {
  __shared__ Shared shared;
  const int64_t r = blockIdx.x;
  Finisher<T>(args, r, shared).run(parts + r * chunks);
}

int chunks_of(const SparkScore& args) {
  return static_cast<int>((args.vocab + kChunk - 1) / kChunk);
}

template <typename T>
cudaError_t launch(const SparkScore& args, Chunk* parts, cudaStream_t stream) {
  const int chunks = chunks_of(args);
  const int64_t blocks = args.rows * ((chunks + kChunksPerBlock<T> - 1) / kChunksPerBlock<T>);
  if (blocks > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidValue;
  cudaLaunchConfig_t config = {};
  config.stream = stream;
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kChunksPerBlock<T> * kWarp);
  const cudaError_t error = cudaLaunchKernelEx(&config, measure<T>, args, chunks, parts);
  if (error != cudaSuccess) return error;
  config.gridDim = dim3(static_cast<unsigned>(args.rows));
  config.blockDim = dim3(kThreads);
  return cudaLaunchKernelEx(&config, finish<T>, args, chunks, static_cast<const Chunk*>(parts));
}

}  // namespace

extern "C" int64_t spark_cuda_score_workspace(const SparkScore* args) {
  return args->rows * chunks_of(*args) * static_cast<int64_t>(sizeof(Chunk));
}

extern "C" int spark_cuda_score(const SparkScore* args, void* workspace, void* stream) {
  if (args->rows == 0) return cudaSuccess;
  if (args->vocab > kMostTokens) return cudaErrorInvalidValue;
  const auto s = static_cast<cudaStream_t>(stream);
  Chunk* const parts = static_cast<Chunk*>(workspace);
  if (args->dtype == SPARK_BF16) return launch<Bf16>(*args, parts, s);
  if (args->dtype == SPARK_F16) return launch<Half>(*args, parts, s);
  return launch<float>(*args, parts, s);
}
