#if defined(__AVX2__)
#include "simd_avx2.h"
//
#include "score_isa.h"
#include "score_row.h"

void spark::score_avx2(const SparkScore& args) { score_all(args); }
#endif
