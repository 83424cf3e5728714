// What the threads of a block find out together.
#pragma once

#include "score_chunk.cuh"

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

// Tokens, and the sum of their weights.
struct Tally {
  uint32_t count = 0;
  uint64_t mass = 0;

  __device__ Tally operator+(const Tally& o) const { return {count + o.count, mass + o.mass}; }
};

// Where a running tally first reaches what was asked for.
struct Crossing {
  int index;     // of the element that does; -1 = none
  Tally before;  // of the elements in front of it
};

struct Asked {
  uint32_t count;
  uint64_t mass;

  // Whether either is reached.
  __device__ bool by(const Tally& t) const { return t.count >= count || t.mass >= mass; }
};

// One of these in shared memory serves all the calls of a block.
struct Scan {
  Tally warp[kWarps];
  Tally total;
  Crossing crossing;

  // Runs over the elements of all threads, `n` consecutive ones each; every thread gets the answer.
  template <int n>
  __device__ Crossing find(const Tally (&mine)[n], const Asked& asked, const Tally& before) {
    const int lane = threadIdx.x % kWarp, own = threadIdx.x / kWarp;
    Tally sum = mine[0];
#pragma unroll
    for (int i = 1; i < n; ++i) sum = sum + mine[i];
    Tally upto = sum;
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const Tally left = {__shfl_up_sync(kAll, upto.count, d), __shfl_up_sync(kAll, upto.mass, d)};
      if (lane >= d) upto = upto + left;
    }
    // the last call's answer has been read
    __syncthreads();
    if (lane == kWarp - 1) warp[own] = upto;
    if (threadIdx.x == 0) crossing.index = -1;
    __syncthreads();
    Tally at = before;
    for (int w = 0; w < own; ++w) at = at + warp[w];
    if (threadIdx.x == kThreads - 1) total = at + upto;
    at = {at.count + upto.count - sum.count, at.mass + upto.mass - sum.mass};
    if (!asked.by(at) && asked.by(at + sum)) {
      bool past = false;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (!past && asked.by(at + mine[i])) {
          crossing = {static_cast<int>(threadIdx.x) * n + i, at};
          past = true;
        }
        at = at + mine[i];
      }
    }
    __syncthreads();
    return crossing;
  }
};

}  // namespace
