#include "spark/score.h"

#include <cmath>

#include "score_isa.h"
#include "spark/isa.h"

namespace {

bool row_is_valid(const SparkScore& a, int64_t r) {
  // below this 1 / temperature would leave the range in which the sums are exact
  const auto heat = [](float t) { return t == 0.0f || (t >= 1e-5f && !std::isinf(t)); };
  return (a.temperature == nullptr || heat(a.temperature[r])) &&
         (a.top_k == nullptr || a.top_k[r] >= 0) &&
         (a.top_p == nullptr || (a.top_p[r] > 0.0f && a.top_p[r] <= 1.0f)) &&
         (a.min_p == nullptr || (a.min_p[r] >= 0.0f && a.min_p[r] <= 1.0f)) &&
         (a.given == nullptr || (a.given[r] >= -1 && a.given[r] < a.vocab));
}

}  // namespace

extern "C" int spark_cpu_score(const SparkScore* args) {
  for (int64_t r = 0; r < args->rows; ++r) {
    if (!row_is_valid(*args, r)) return 1;
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
