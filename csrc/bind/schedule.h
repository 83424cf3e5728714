// Packs a plan into the work list of a GPU. Torch-free.
#pragma once

#include <cstdint>
#include <vector>

#include "spark/schedule.h"

namespace spark {

// Throws std::invalid_argument when an option is out of range.
std::vector<int32_t> schedule(const std::vector<int32_t>& plan,
                              const SparkScheduleOptions& options);

}  // namespace spark
