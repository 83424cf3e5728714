#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <deque>
#include <mutex>
#include <utility>

#include "kv_fork.h"
#include "stream.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The buffers' addresses on their device, as int64; written once for each pool of buffers and kept:
// captured graphs may read them at any time.
Tensor addresses(const std::vector<void*>& pointers, const Tensor& buffer, void* stream) {
  using Known = std::pair<std::pair<std::vector<void*>, int32_t>, Tensor>;
  static std::mutex mutex;
  static std::deque<Known> pools;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::pair key(pointers, buffer.get_device_index());
  for (const Known& pool : pools) {
    if (pool.first == key) return pool.second;
  }
  const auto count = static_cast<int64_t>(pointers.size());
  Tensor table = torch::stable::new_empty(buffer, {count}, ScalarType::Long);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(void*));
  check_cuda(spark_cuda_upload(table.data_ptr(), pointers.data(), bytes, stream));
  pools.emplace_front(key, table);
  return table;
}

void kv_fork(const std::vector<Tensor>& buffers, const Tensor& pairs, bool nhd) {
  std::vector<void*> pointers;
  SparkKvFork args = kv_fork_arguments(buffers, pairs, nhd, pointers);
  // one launch moves them all; on the CPU the dispatcher has seen to it
  for (const Tensor& buffer : buffers) {
    STD_TORCH_CHECK(buffer.is_cuda() && buffer.get_device_index() == buffers[0].get_device_index(),
                    "kv_fork: buffers must be on one device");
  }
  const torch::stable::accelerator::DeviceGuard guard(buffers[0].get_device_index());
  void* const stream = current_stream(buffers[0]);
  const Tensor table = addresses(pointers, buffers[0], stream);
  check_cuda(spark_cuda_kv_fork(&args, static_cast<void* const*>(table.data_ptr()), stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spark, CUDA, m) { m.impl("kv_fork", TORCH_BOX(&kv_fork)); }
