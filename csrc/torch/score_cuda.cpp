#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "score.h"
#include "stream.h"

namespace {

int on_cuda(SparkScore& args, const Tensor& logits) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  // from torch's caching allocator: no synchronisation, and its own place in a captured graph
  const Tensor workspace =
      torch::stable::new_empty(logits, {spark_cuda_score_workspace(&args)}, ScalarType::Byte);
  check_cuda(spark_cuda_score(&args, workspace.data_ptr(), current_stream(logits)));
  return 0;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spark, CUDA, m) { m.impl("score", TORCH_BOX(&score_out<on_cuda>)); }
