#if defined(__AVX512F__)
#include "simd_avx512.h"
//
#include "score_isa.h"
#include "score_row.h"

void spark::score_avx512(const SparkScore& args) { score_all(args); }
#endif
