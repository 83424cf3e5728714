// What the operators of every device check and fill in alike; values are read by the kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "spark/score.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// spark_kernels/score/check.py says which argument it was, in words
inline void require(bool ok) { STD_TORCH_CHECK(ok, "spark::score: an argument does not fit"); }

// What every tensor shares with the logits.
struct Fit {
  const Tensor& logits;

  bool beside(const Tensor& t, ScalarType dtype, int64_t dim) const {
    return t.is_cpu() == logits.is_cpu() && t.get_device_index() == logits.get_device_index() &&
           t.scalar_type() == dtype && t.dim() == dim && t.size(0) == logits.size(0);
  }
  template <typename T>
  T* per_row(const Tensor& t, ScalarType dtype) const {
    require(beside(t, dtype, 1) && (t.stride(0) == 1 || t.size(0) < 2));
    return static_cast<T*>(t.data_ptr());
  }
  template <typename T>
  T* per_row(const Optional& t, ScalarType dtype) const {
    return t.has_value() ? per_row<T>(*t, dtype) : nullptr;
  }
  const uint32_t* bitmask(const Optional& t) const {
    if (!t.has_value()) return nullptr;
    require(beside(*t, ScalarType::Int, 2) && t->size(1) == (logits.size(1) + 31) / 32 &&
            t->is_contiguous());
    return static_cast<const uint32_t*>(t->data_ptr());
  }
};

inline SparkDType element(ScalarType dtype) {
  if (dtype == ScalarType::Float) return SPARK_F32;
  if (dtype == ScalarType::BFloat16) return SPARK_BF16;
  require(dtype == ScalarType::Half);
  return SPARK_F16;
}

// The operator, around what a device does; `run` gets the logits' tensor for its device.
template <int (*run)(SparkScore&, const Tensor& logits)>
void score_out(Tensor logits, Optional temperature, Optional top_k, Optional top_p, Optional min_p,
               Optional allowed, Optional seed, Optional position, Optional given, Tensor tokens,
               Tensor logprob, Tensor log_kept_mass, Tensor entropy, Tensor varentropy,
               Optional entropy_tempered, Optional varentropy_tempered) {
  require(logits.dim() == 2 && logits.size(1) > 0);
  require(logits.stride(1) == 1 || logits.size(1) == 1);
  const Fit fit{logits};
  require(entropy_tempered.has_value() == varentropy_tempered.has_value());
  constexpr ScalarType kFloat = ScalarType::Float, kLong = ScalarType::Long;
  SparkScore args = {
      .logits = logits.data_ptr(),
      .dtype = element(logits.scalar_type()),
      .rows = logits.size(0),
      .vocab = logits.size(1),
      .stride = logits.stride(0),
      .temperature = fit.per_row<float>(temperature, kFloat),
      .top_k = fit.per_row<int32_t>(top_k, ScalarType::Int),
      .top_p = fit.per_row<float>(top_p, kFloat),
      .min_p = fit.per_row<float>(min_p, kFloat),
      .allowed = fit.bitmask(allowed),
      .seed = fit.per_row<int64_t>(seed, kLong),
      .position = fit.per_row<int64_t>(position, kLong),
      .given = fit.per_row<int64_t>(given, kLong),
      .tokens = fit.per_row<int64_t>(tokens, kLong),
      .logprob = fit.per_row<float>(logprob, kFloat),
      .log_kept_mass = fit.per_row<float>(log_kept_mass, kFloat),
      .entropy = fit.per_row<float>(entropy, kFloat),
      .varentropy = fit.per_row<float>(varentropy, kFloat),
      .entropy_tempered = fit.per_row<float>(entropy_tempered, kFloat),
      .varentropy_tempered = fit.per_row<float>(varentropy_tempered, kFloat),
  };
  require(run(args, logits) == 0);
}

}  // namespace
