#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "kv_fork.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace {

using torch::stable::Tensor;

void kv_fork(const std::vector<Tensor>& buffers, const Tensor& pairs, bool nhd) {
  std::vector<void*> pointers;
  SparkKvFork args = kv_fork_arguments(buffers, pairs, nhd, pointers);
  const int32_t device = buffers[0].get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const int error = spark_cuda_kv_fork(&args, stream);
  STD_TORCH_CHECK(error == 0, "kv_fork: CUDA error ", error);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spark, CUDA, m) { m.impl("kv_fork", TORCH_BOX(&kv_fork)); }
