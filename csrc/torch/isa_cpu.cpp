// spark::cpu_isa, what `spark doctor` prints.
#include <torch/csrc/stable/library.h>

#include "spark/isa.h"

namespace {

int64_t cpu_isa() { return spark_cpu_isa(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(spark, m) { m.def("cpu_isa() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(spark, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
