#include "simd_plain.h"
//
#include "score_isa.h"
#include "score_row.h"

void spark::score_plain(const SparkScore& args) { score_all(args); }
