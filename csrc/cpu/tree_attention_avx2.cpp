#include "tree_attention_kernels.h"

spark::attention::Kernels spark::attention::kernels_avx2(SparkDType dtype) {
  return ::kernels(dtype);
}
