// spark::score on CPU: shapes and dtypes are checked, values are read by the kernel.
#include "spark/score.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// spark_kernels/score/check.py says which argument it was, in words
void require(bool ok) { STD_TORCH_CHECK(ok, "spark::score: an argument does not fit"); }

template <typename T>
T* per_row(const Tensor& t, ScalarType dtype, int64_t rows) {
  require(t.is_cpu() && t.dim() == 1 && t.scalar_type() == dtype && t.size(0) == rows &&
          (t.stride(0) == 1 || rows < 2));
  return static_cast<T*>(t.data_ptr());
}

template <typename T>
T* per_row(const Optional& t, ScalarType dtype, int64_t rows) {
  return t.has_value() ? per_row<T>(*t, dtype, rows) : nullptr;
}

const uint32_t* bitmask(const Optional& t, int64_t rows, int64_t vocab) {
  if (!t.has_value()) return nullptr;
  require(t->is_cpu() && t->dim() == 2 && t->scalar_type() == ScalarType::Int &&
          t->size(0) == rows && t->size(1) == (vocab + 31) / 32 && t->is_contiguous());
  return static_cast<const uint32_t*>(t->data_ptr());
}

void score_out(Tensor logits, Optional temperature, Optional top_k, Optional top_p, Optional min_p,
               Optional allowed, Optional seed, Optional position, Optional given, Tensor tokens,
               Tensor logprob, Tensor log_kept_mass, Tensor entropy, Tensor varentropy,
               Optional entropy_tempered, Optional varentropy_tempered) {
  require(logits.dim() == 2 && logits.size(1) > 0);
  require(logits.stride(1) == 1 || logits.size(1) == 1);
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const ScalarType dtype = logits.scalar_type();
  require(dtype == ScalarType::Float || dtype == ScalarType::BFloat16);
  require(entropy_tempered.has_value() == varentropy_tempered.has_value());
  constexpr ScalarType kFloat = ScalarType::Float, kLong = ScalarType::Long;
  const SparkScore args = {
      .logits = logits.data_ptr(),
      .dtype = dtype == kFloat ? SPARK_F32 : SPARK_BF16,
      .rows = rows,
      .vocab = vocab,
      .stride = logits.stride(0),
      .temperature = per_row<float>(temperature, kFloat, rows),
      .top_k = per_row<int32_t>(top_k, ScalarType::Int, rows),
      .top_p = per_row<float>(top_p, kFloat, rows),
      .min_p = per_row<float>(min_p, kFloat, rows),
      .allowed = bitmask(allowed, rows, vocab),
      .seed = per_row<int64_t>(seed, kLong, rows),
      .position = per_row<int64_t>(position, kLong, rows),
      .given = per_row<int64_t>(given, kLong, rows),
      .tokens = per_row<int64_t>(tokens, kLong, rows),
      .logprob = per_row<float>(logprob, kFloat, rows),
      .log_kept_mass = per_row<float>(log_kept_mass, kFloat, rows),
      .entropy = per_row<float>(entropy, kFloat, rows),
      .varentropy = per_row<float>(varentropy, kFloat, rows),
      .entropy_tempered = per_row<float>(entropy_tempered, kFloat, rows),
      .varentropy_tempered = per_row<float>(varentropy_tempered, kFloat, rows),
  };
  require(spark_cpu_score(&args) == 0);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(spark, m) {
  m.def(
      "score(Tensor logits, Tensor? temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, "
      "Tensor? allowed, Tensor? seed, Tensor? position, Tensor? given, Tensor(a!) tokens, "
      "Tensor(b!) logprob, Tensor(c!) log_kept_mass, Tensor(d!) entropy, Tensor(e!) varentropy, "
      "Tensor(f!)? entropy_tempered, Tensor(g!)? varentropy_tempered) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(spark, CPU, m) { m.impl("score", TORCH_BOX(&score_out)); }
