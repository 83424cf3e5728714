// What the CPU and the CUDA operator check and fill in alike.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "spark/kv_fork.h"

namespace {

// `pointers` backs the result. The values of `pairs` are the caller's to check.
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
  for (const torch::stable::Tensor& buffer : buffers) {
    const bool same = buffer.dim() == 4 && buffer.scalar_type() == first.scalar_type() &&
                      std::equal(shape.begin(), shape.end(), buffer.sizes().begin());
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
  return args;
}

}  // namespace
