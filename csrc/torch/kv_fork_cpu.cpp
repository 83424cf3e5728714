#include <torch/csrc/stable/library.h>

#include "kv_fork.h"

namespace {

using torch::stable::Tensor;

void kv_fork(const std::vector<Tensor>& buffers, const Tensor& pairs, bool nhd) {
  std::vector<void*> pointers;
  SparkKvFork args = kv_fork_arguments(buffers, pairs, nhd, pointers);
  spark_cpu_kv_fork(&args);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(spark, m) {
  m.def("kv_fork(Tensor(a!)[] buffers, Tensor pairs, bool nhd) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(spark, CPU, m) { m.impl("kv_fork", TORCH_BOX(&kv_fork)); }
