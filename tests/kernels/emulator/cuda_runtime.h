// Runs CUDA kernels on the CPU, unchanged: every thread of a block is a fiber that goes on until it
// must wait for others. Warps take turns in a shuffled order (EMULATOR_SEED) and go as far as they
// can, so that a missing barrier shows. One block at a time.
#pragma once

#include <ucontext.h>
#include <csetjmp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline
#define __align__(n) alignas(n)
// a block runs at a time, so that what is static is shared
#define __shared__ static

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;

struct uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emulator {

struct Barrier {
  unsigned alive = 0, arrived = 0;
  uint64_t generation = 0;

  void release_if_complete() {
    if (arrived < alive) return;
    arrived = 0;
    ++generation;
  }
};

struct Thread {
  ucontext_t context;
  jmp_buf place;  // where it goes on, once it has begun
  dim3 index;
  bool begun = false, done = false;
  const Barrier* at = nullptr;  // where it waits, since that generation
  uint64_t since = 0;

  bool can_run() const { return !done && (at == nullptr || at->generation != since); }
};

struct Block {
  static constexpr size_t kStack = 64 << 10, kMostThreads = 1024;
  std::vector<Thread> threads;
  // only the pages that are used exist
  std::unique_ptr<char[]> stacks{new char[kStack * kMostThreads]};
  std::vector<unsigned char> exchange;  // 8 bytes a thread, for warp shuffles
  Barrier barrier;
  std::vector<Barrier> warp_barriers;
  std::function<void()> body;
  jmp_buf scheduler;
  Thread* running = nullptr;
};

inline Block* block = nullptr;

inline size_t position() { return block->running - block->threads.data(); }

// Lets others run until all that are alive have come here.
inline void wait_at(Barrier& barrier) {
  Thread& self = *block->running;
  self.at = &barrier;
  self.since = barrier.generation;
  ++barrier.arrived;
  barrier.release_if_complete();
  // contexts begin a thread; jumps between them cost no system call
  if (!self.can_run() && _setjmp(self.place) == 0) _longjmp(block->scheduler, 1);
}

inline Barrier& warp_barrier() { return block->warp_barriers[position() / 32]; }

// Every lane gives a value and reads that of lane `from`.
template <typename V>
V exchanged(V value, size_t from) {
  static_assert(sizeof(V) <= 8);
  const size_t me = position(), begin = me / 32 * 32;
  std::memcpy(&block->exchange[8 * me], &value, sizeof(V));
  wait_at(warp_barrier());
  V out;
  std::memcpy(&out, &block->exchange[8 * (begin + from)], sizeof(V));
  wait_at(warp_barrier());
  return out;
}

inline void start() {
  block->body();
  block->running->done = true;
  for (Barrier* barrier : {&block->barrier, &warp_barrier()}) {
    --barrier->alive;
    if (barrier->arrived > 0) barrier->release_if_complete();
  }
  _longjmp(block->scheduler, 1);
}

inline void resume(Thread& thread) {
  if (thread.begun) _longjmp(thread.place, 1);
  thread.begun = true;
  setcontext(&thread.context);
}

// Runs one block to its end.
inline void run_block(dim3 size, std::mt19937& random) {
  Block& b = *block;
  const size_t count = size_t(size.x) * size.y * size.z;
  b.threads.assign(count, {});
  b.exchange.resize(8 * count);
  b.barrier = {unsigned(count)};
  b.warp_barriers.assign((count + 31) / 32, {});
  for (size_t t = 0; t < count; ++t) ++b.warp_barriers[t / 32].alive;
  for (size_t t = 0; t < count; ++t) {
    Thread& thread = b.threads[t];
    thread.index = dim3(t % size.x, t / size.x % size.y, t / size.x / size.y);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = &b.stacks[t * Block::kStack];
    thread.context.uc_stack.ss_size = Block::kStack;
    makecontext(&thread.context, start, 0);
  }
  std::vector<size_t> warps(b.warp_barriers.size());
  std::iota(warps.begin(), warps.end(), 0);
  std::shuffle(warps.begin(), warps.end(), random);
  const size_t flip = random() % 32;
  // a warp goes as far as it can before the next gets its turn, so that it meets what lags behind;
  // volatile: a jump comes back with the registers of the time it was set up
  for (volatile bool more = true; more;) {
    more = false;
    for (volatile size_t w = 0; w < warps.size(); w = w + 1) {
      for (volatile bool again = true; again;) {
        again = false;
        for (volatile size_t i = 0; i < 32; i = i + 1) {
          const size_t t = 32 * warps[w] + (i ^ flip);
          if (t >= count || !b.threads[t].can_run()) continue;
          b.running = &b.threads[t];
          threadIdx = b.running->index;
          if (_setjmp(b.scheduler) == 0) resume(*b.running);
          more = again = true;
        }
      }
    }
  }
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_at(emulator::block->barrier); }
inline void __syncwarp(unsigned = ~0u) { emulator::wait_at(emulator::warp_barrier()); }

template <typename V>
V __shfl_xor_sync(unsigned, V value, int bits) {
  return emulator::exchanged(value, (emulator::position() % 32) ^ bits);
}
template <typename V>
V __shfl_up_sync(unsigned, V value, int by) {
  const size_t lane = emulator::position() % 32;
  return emulator::exchanged(value, lane < size_t(by) ? lane : lane - by);
}
inline int __any_sync(unsigned, int predicate) {
  int any = predicate != 0;
  for (int bit = 16; bit > 0; bit /= 2) any |= __shfl_xor_sync(0, any, bit);
  return any;
}
template <typename V>
V atomicAdd(V* at, V by) {
  const V old = *at;
  *at += by;
  return old;
}
template <typename V>
V atomicMin(V* at, V by) {
  const V old = *at;
  *at = std::min(old, by);
  return old;
}
template <typename V>
V __ldg(const V* p) {
  return *p;
}
using std::max;
using std::min;

template <typename... Wanted, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Wanted...),
                               Given... given) {
  const char* seed = std::getenv("EMULATOR_SEED");
  std::mt19937 random(seed == nullptr ? 0 : std::atoi(seed));
  emulator::Block block;
  emulator::block = &block;
  block.body = [&] { kernel(static_cast<Wanted>(given)...); };
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned z = 0; z < gridDim.z; ++z) {
    for (unsigned y = 0; y < gridDim.y; ++y) {
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = dim3(x, y, z);
        emulator::run_block(blockDim, random);
      }
    }
  }
  return cudaSuccess;
}
constexpr int cudaMemcpyHostToDevice = 1;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
constexpr cudaError_t cudaErrorStreamCaptureUnsupported = 900;
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
