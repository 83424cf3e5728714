// The same kernel, compiled once for each instruction set.
#pragma once

#include "spark/score.h"

namespace spark {

void score_plain(const SparkScore& args);
void score_avx2(const SparkScore& args);
void score_avx512(const SparkScore& args);

}  // namespace spark
