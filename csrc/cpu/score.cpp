#include "spark/score.h"

#include "score_isa.h"
#include "spark/isa.h"
#include "spark/score_math.h"

extern "C" int spark_cpu_score(const SparkScore* args) {
  if (args->vocab > kMostTokens) return 1;
  for (int64_t r = 0; r < args->rows; ++r) {
    if (!Row(*args, r).valid) return 1;
  }
  switch (spark_cpu_isa()) {
#if defined(__x86_64__)
    case SPARK_ISA_AVX512:
      spark::score_avx512(*args);
      break;
    case SPARK_ISA_AVX2:
      spark::score_avx2(*args);
      break;
#endif
    default:
      spark::score_plain(*args);
  }
  return 0;
}
