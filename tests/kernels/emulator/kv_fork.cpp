// `kv_fork` through the CUDA kernel, on the CPU.
#include "../../../csrc/torch/kv_fork.h"

#include <torch/csrc/stable/library.h>

namespace {

void kv_fork(std::vector<torch::stable::Tensor> buffers, torch::stable::Tensor pairs, bool nhd) {
  std::vector<void*> pointers;
  const SparkKvFork args = kv_fork_arguments(buffers, pairs, nhd, pointers);
  STD_TORCH_CHECK(spark_cuda_kv_fork(&args, pointers.data(), nullptr) == 0, "kv_fork failed");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(spark_emulator, m) {
  m.def("kv_fork(Tensor(a!)[] buffers, Tensor pairs, bool nhd) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(spark_emulator, CPU, m) { m.impl("kv_fork", TORCH_BOX(&kv_fork)); }
