#include "score.h"

#include <torch/csrc/stable/library.h>

namespace {

int on_cpu(SparkScore& args, const Tensor&) { return spark_cpu_score(&args); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(spark, m) {
  m.def(
      "score(Tensor logits, Tensor? temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, "
      "Tensor? allowed, Tensor? seed, Tensor? position, Tensor? given, Tensor(a!) tokens, "
      "Tensor(b!) logprob, Tensor(c!) log_kept_mass, Tensor(d!) entropy, Tensor(e!) varentropy, "
      "Tensor(f!)? entropy_tempered, Tensor(g!)? varentropy_tempered) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(spark, CPU, m) { m.impl("score", TORCH_BOX(&score_out<on_cpu>)); }
