#include "spark/isa.h"

#include <cstdlib>
#include <cstring>

namespace {

SparkIsa detect() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return SPARK_ISA_AVX512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return SPARK_ISA_AVX2;
  }
#endif
  return SPARK_ISA_PLAIN;
}

}  // namespace

extern "C" SparkIsa spark_cpu_isa() {
  static const SparkIsa best = detect();
  // read on every call: tests switch it
  const char* wanted = std::getenv("SPARK_ISA");
  if (wanted == nullptr) return best;
  if (std::strcmp(wanted, "plain") == 0) return SPARK_ISA_PLAIN;
  if (std::strcmp(wanted, "avx2") == 0 && best == SPARK_ISA_AVX512) return SPARK_ISA_AVX2;
  return best;
}
