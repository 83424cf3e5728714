// Where a truncated distribution ends, and where in it a draw falls; whole numbers, so that every
// device comes to the same token whatever the order of its sums.
#pragma once

#include "spark/philox.h"
#include "spark/score_math.h"

namespace {

constexpr int64_t kNoToken = std::numeric_limits<int64_t>::max();

// The last token kept in the order (logit falling, token rising).
struct Cut {
  float x = -kInf;
  int64_t token = kNoToken;  // past all of them

  // Whether it comes first in that order.
  SPARK_HOST_DEVICE bool before(const Cut& other) const {
    return x > other.x || (x == other.x && token < other.token);
  }
  SPARK_HOST_DEVICE bool keeps(float logit, int64_t at) const {
    return logit > x || (logit == x && at <= token);
  }
};

// A cut, and the mass of what it keeps.
struct Prefix {
  Cut cut;
  uint64_t mass;
};

struct Filter {
  int64_t top_k;  // 0 = off
  double top_p;   // 1 = off
  double min_p;   // 0 = off

  SPARK_HOST_DEVICE Filter(const SparkScore& a, int64_t r, bool greedy) {
    const int64_t k = a.top_k == nullptr ? 0 : a.top_k[r];
    top_k = greedy ? 1 : (k >= a.vocab ? 0 : k);
    top_p = a.top_p == nullptr ? 1.0 : a.top_p[r];
    min_p = a.min_p == nullptr ? 0.0 : a.min_p[r];
  }
  SPARK_HOST_DEVICE bool off() const { return top_k == 0 && top_p >= 1.0 && min_p <= 0.0; }
};

// The smallest float x with scale * (x - max) >= log(min_p).
SPARK_HOST_DEVICE inline float min_p_bound(double max, double scale, double min_p) {
  const double least = std::log(min_p);
  float x = static_cast<float>(max + least / scale);
  const auto passes = [&](float v) { return scale * (double(v) - max) >= least; };
  while (!passes(x)) x = std::nextafter(x, kInf);
  while (passes(std::nextafter(x, -kInf))) x = std::nextafter(x, -kInf);
  return x;
}

// A logit below which top-p keeps nothing: all tokens further than this from the largest weigh less
// than what top-p leaves out.
SPARK_HOST_DEVICE inline float top_p_bound(double max, double scale, double top_p, uint64_t mass,
                                           int64_t vocab) {
  const double left = (1.0 - top_p) * (double(mass) * 0x1p-44) / double(vocab);
  return std::nextafter(static_cast<float>(max + (std::log(left) - 1e-3) / scale), -kInf);
}

// The least mass that top-p is content with.
SPARK_HOST_DEVICE inline uint64_t enough_of(double top_p, uint64_t mass) {
  return static_cast<uint64_t>(std::ceil(top_p * double(mass)));
}

// The high half of a * b.
SPARK_HOST_DEVICE inline uint64_t high_product(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((Wide(a) * b) >> 64);
#endif
}

// The point of [0, mass) that a row's random number picks.
SPARK_HOST_DEVICE inline uint64_t draw_point(const SparkScore& a, int64_t r, uint64_t mass) {
  const uint64_t seed = a.seed == nullptr ? 0 : a.seed[r];
  const uint64_t position = a.position == nullptr ? 0 : a.position[r];
  return high_product(philox_bits(seed, position) << 11, mass);
}

// `point` of [0, from), a chunk's mass in its row, as a point of [0, to), its mass by itself.
SPARK_HOST_DEVICE inline uint64_t rescaled(uint64_t point, uint64_t from, uint64_t to) {
  const uint64_t at = static_cast<uint64_t>(double(point) / double(from) * double(to));
  return at < to ? at : to - 1;
}

}  // namespace
