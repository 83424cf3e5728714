// What the CPU and the CUDA operator check and fill in alike.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "spark/kv_fork.h"

namespace {

// Tensor::scalar_type compares with every dtype in turn, which 56 buffers would pay for.
inline int32_t shim_dtype(const torch::stable::Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// Whether blocks and token counts are in range, destinations are distinct and none is a source.
inline bool can_copy_in_any_order(const SparkKvFork& args, int64_t num_blocks) {
  std::vector<int64_t> sources, destinations, both;
  for (const int64_t* pair = args.pairs; pair != args.pairs + 3 * args.num_pairs; pair += 3) {
    const auto [low, high] = std::minmax(pair[0], pair[1]);
    if (low < 0 || high >= num_blocks || pair[2] < 0 || pair[2] > args.tokens) return false;
    sources.push_back(pair[0]);
    destinations.push_back(pair[1]);
  }
  std::sort(sources.begin(), sources.end());
  std::sort(destinations.begin(), destinations.end());
  std::set_intersection(sources.begin(), sources.end(), destinations.begin(), destinations.end(),
                        std::back_inserter(both));
  const auto twin = std::adjacent_find(destinations.begin(), destinations.end());
  return both.empty() && twin == destinations.end();
}

// `pointers` backs the result.
inline SparkKvFork kv_fork_arguments(const std::vector<torch::stable::Tensor>& buffers,
                                     const torch::stable::Tensor& pairs, bool nhd,
                                     std::vector<void*>& pointers) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(!buffers.empty(), "kv_fork: no buffers");
  STD_TORCH_CHECK(pairs.scalar_type() == ScalarType::Long && pairs.dim() == 2 &&
                      pairs.size(1) == 3 && pairs.is_contiguous() && pairs.is_cpu(),
                  "kv_fork: pairs must be contiguous int64 [n, 3] on the host");
  const torch::stable::Tensor& first = buffers[0];
  STD_TORCH_CHECK(first.dim() == 4, "kv_fork: buffers must have 4 axes");
  const auto shape = first.sizes();
  const int32_t dtype = shim_dtype(first);
  pointers.reserve(buffers.size());
  for (const torch::stable::Tensor& buffer : buffers) {
    // torch 2.11 has no == of sizes
    const bool same = buffer.sizes().equals(shape) && shim_dtype(buffer) == dtype;
    STD_TORCH_CHECK(same && buffer.is_contiguous(),
                    "kv_fork: buffers must be contiguous, of one shape and dtype");
    pointers.push_back(buffer.data_ptr());
  }
  SparkKvFork args{};
  args.buffers = pointers.data();
  args.num_buffers = static_cast<int64_t>(pointers.size());
  args.pairs = static_cast<const int64_t*>(pairs.data_ptr());
  args.num_pairs = pairs.size(0);
  args.runs = nhd ? 1 : first.size(1);
  args.tokens = first.size(nhd ? 1 : 2);
  args.token_bytes = (nhd ? first.size(2) : 1) * first.size(3) * first.element_size();
  STD_TORCH_CHECK(can_copy_in_any_order(args, first.size(0)),
                  "kv_fork: pairs cannot be copied in any order");
  return args;
}

}  // namespace
