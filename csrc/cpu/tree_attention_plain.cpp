#include "tree_attention_kernels.h"

spark::attention::Kernels spark::attention::kernels_plain(SparkDType dtype) {
  return ::kernels(dtype);
}
