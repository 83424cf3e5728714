#include "tree_attention_kernels.h"

spark::attention::Kernels spark::attention::kernels_avx512bf16(SparkDType dtype) {
  return ::kernels(dtype);
}
