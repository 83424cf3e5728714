#include "spark/isa.h"

extern "C" SparkIsa spark_cpu_isa() {
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
