// `score` through the CUDA kernels, on the CPU.
#include "../../../csrc/torch/score.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace {

int on_emulator(SparkScore& args, const Tensor&) {
  // what an allocator would hand out: not zero
  std::vector<char> workspace(spark_cuda_score_workspace(&args), 0x7f);
  return spark_cuda_score(&args, workspace.data(), nullptr);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(spark_emulator, m) {
  m.def(
      "score(Tensor logits, Tensor? temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, "
      "Tensor? allowed, Tensor? seed, Tensor? position, Tensor? given, Tensor(a!) tokens, "
      "Tensor(b!) logprob, Tensor(c!) log_kept_mass, Tensor(d!) entropy, Tensor(e!) varentropy, "
      "Tensor(f!)? entropy_tempered, Tensor(g!)? varentropy_tempered) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(spark_emulator, CPU, m) {
  m.impl("score", TORCH_BOX(&score_out<on_emulator>));
}
