#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "spark/tree_attention.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_tokens(const Tensor& t, const char* name, int64_t tokens, int64_t heads, int64_t dim,
                  ScalarType dtype) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == tokens && t.size(1) == heads && t.size(2) == dim,
                  "tree_attention: ", name, " must be [", tokens, ", ", heads, ", ", dim, "]");
  STD_TORCH_CHECK(t.scalar_type() == dtype, "tree_attention: ", name, " must have q's dtype");
  STD_TORCH_CHECK(t.stride(2) == 1 || t.numel() == 0, "tree_attention: ", name,
                  " must be contiguous in its last axis");
}

void check_cache(const Tensor& t, const char* name, const SparkPlan& plan, int64_t heads,
                 int64_t dim, ScalarType dtype) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) >= plan.num_blocks && t.size(1) == heads &&
                      t.size(2) == plan.block_size && t.size(3) == dim && t.is_contiguous(),
                  "tree_attention: ", name, " must be contiguous [>= ", plan.num_blocks, ", ",
                  heads, ", ", plan.block_size, ", ", dim, "]");
  STD_TORCH_CHECK(t.scalar_type() == dtype, "tree_attention: ", name, " must have q's dtype");
}

const SparkPlan& read_plan(const Tensor& t) {
  constexpr int64_t kHeader = sizeof(SparkPlan) / sizeof(int32_t);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Int && t.dim() == 1 && t.is_contiguous() &&
                      t.size(0) >= kHeader,
                  "tree_attention: plan must be int32, contiguous, one axis");
  const auto& plan = *static_cast<const SparkPlan*>(t.data_ptr());
  STD_TORCH_CHECK(plan.magic == kSparkPlanMagic && plan.words <= t.size(0),
                  "tree_attention: plan is not one of BlockPool.plan");
  return plan;
}

void tree_attention(Tensor q, Tensor k, Tensor v, Tensor k_cache, Tensor v_cache, Tensor plan,
                    double scale, int64_t window, double softcap, Tensor out) {
  const SparkPlan& p = read_plan(plan);
  const ScalarType dtype = q.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "tree_attention: q must be float32 or bfloat16");
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3, "tree_attention: q and k must have 3 axes");
  const int64_t heads = q.size(1), kv_heads = k.size(1), dim = q.size(2);
  STD_TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0, "tree_attention: ", heads,
                  " query heads are no multiple of ", kv_heads, " key/value heads");
  STD_TORCH_CHECK(dim >= 8 && dim <= 256 && dim % 8 == 0,
                  "tree_attention: head_dim must be a multiple of 8 up to 256, got ", dim);
  STD_TORCH_CHECK(scale > 0, "tree_attention: scale must be > 0, got ", scale);
  STD_TORCH_CHECK(window >= 0 && softcap >= 0, "tree_attention: window and softcap must be >= 0");
  check_tokens(q, "q", p.num_tokens, heads, dim, dtype);
  check_tokens(k, "k", p.num_tokens, kv_heads, dim, dtype);
  check_tokens(v, "v", p.num_tokens, kv_heads, dim, dtype);
  check_tokens(out, "out", p.num_tokens, heads, dim, dtype);
  check_cache(k_cache, "k_cache", p, kv_heads, dim, dtype);
  check_cache(v_cache, "v_cache", p, kv_heads, dim, dtype);

  SparkTreeAttention args{};
  args.q = q.data_ptr();
  args.k = k.data_ptr();
  args.v = v.data_ptr();
  args.k_cache = k_cache.data_ptr();
  args.v_cache = v_cache.data_ptr();
  args.out = out.data_ptr();
  args.plan = &p;
  for (int axis = 0; axis < 2; ++axis) {
    args.q_strides[axis] = q.stride(axis);
    args.k_strides[axis] = k.stride(axis);
    args.v_strides[axis] = v.stride(axis);
    args.out_strides[axis] = out.stride(axis);
  }
  args.num_heads = heads;
  args.num_kv_heads = kv_heads;
  args.head_dim = dim;
  args.window = window;
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap);
  args.dtype = dtype == ScalarType::Float ? SPARK_F32 : SPARK_BF16;
  spark_cpu_tree_attention(&args);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(spark, m) {
  m.def(
      "tree_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor plan, float scale, int window, float softcap, Tensor(c!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(spark, CPU, m) { m.impl("tree_attention", TORCH_BOX(&tree_attention)); }
