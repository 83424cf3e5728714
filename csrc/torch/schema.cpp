// The operator library "spark": every op declares its schema in its own file as a fragment.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(spark, m) {}
