// The arithmetic of `score` that all devices do alike, to the bit: IEEE operations in a fixed
// order, and whole numbers wherever the order is left open. The maths is in
// spark_kernels/score/README.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "spark/narrow.h"
#include "spark/score.h"

namespace {

// the split of a row depends on nothing but its length: results do not depend on batch or threads
constexpr int64_t kChunk = 2048;
constexpr int64_t kLanes = 16;
// vectors of a chunk that are 16 apart are added up one by one, the sums of these as a tree
constexpr int kRuns = 16;
// chunks that are 32 apart are merged one by one, the results as a tree
constexpr int kMergers = 32;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
// weights of 2^kFloor of the largest and less are exactly 0
constexpr float kFloor = -127.0f;
// added and subtracted again, it rounds to a whole number, which it leaves in the low bits
constexpr float kRound = 12582912.0f;
// a weight of 1; sums of weights are whole numbers, so that their order does not matter
constexpr int kUnitBits = 44;
constexpr uint64_t kUnit = uint64_t(1) << kUnitBits;
// of a row; the sum of as many weights of 1 is the largest that fits
constexpr int64_t kMostTokens = (int64_t(1) << (64 - kUnitBits)) - 1;
constexpr uint64_t kEndless = std::numeric_limits<uint64_t>::max();

// e^x for x <= 0, the same bits everywhere; libraries differ in the last one.
SPARK_HOST_DEVICE inline double exp_of(double x) {
  if (!(x > -700.0)) return 0.0;
  constexpr double kWhole = 0x1.8p52;
  constexpr double kInverse[] = {1.0 / 6227020800,
                                 1.0 / 479001600,
                                 1.0 / 39916800,
                                 1.0 / 3628800,
                                 1.0 / 362880,
                                 1.0 / 40320,
                                 1.0 / 5040,
                                 1.0 / 720,
                                 1.0 / 120,
                                 1.0 / 24,
                                 1.0 / 6,
                                 0.5,
                                 1.0,
                                 1.0};
  const double t = std::fma(x, 0x1.71547652b82fep+0, kWhole), n = t - kWhole;
  const double r = std::fma(n, -0x1.abc9e3b39803fp-56, std::fma(n, -0x1.62e42fefa39efp-1, x));
  double p = kInverse[0];
  for (int i = 1; i < 14; ++i) p = std::fma(p, r, kInverse[i]);
  return bits_as<double>(bits_as<uint64_t>(p) + (bits_as<uint64_t>(t) << 52));
}

// 2^y on [-1/2, 1/2] as a polynomial, highest power first.
SPARK_HOST_DEVICE inline float exp2_coefficient(int i) {
  constexpr float kPowers[] = {0x1.5bda58p-10f, 0x1.3ce8acp-7f, 0x1.c6b6d8p-5f,
                               0x1.ebf9c2p-3f,  0x1.62e42ap-1f, 1.0f};
  return kPowers[i];
}

// A weight in [0, 1], or the sum of some, as a whole number.
SPARK_HOST_DEVICE inline uint64_t fixed(float weight) { return uint64_t(weight * 0x1p44f); }
SPARK_HOST_DEVICE inline uint64_t fixed(double mass) { return uint64_t(mass * 0x1p44 + 0.5); }

// Logits as powers of two: y = (x - max) * factor, never above 0. One unit of y is scale / factor
// in nats, not quite ln 2, because the factor is rounded.
SPARK_HOST_DEVICE inline float factor_of(double scale) {
  return static_cast<float>(scale * 1.44269504088896340736);
}

// Over a run of logits: sums of 2^y, y 2^y and y^2 2^y.
struct Sums {
  float s = 0.0f, t = 0.0f, q = 0.0f;
};

// What a pass over one chunk leaves behind.
struct Chunk {
  float max = -kInf;
  Sums plain;  // at temperature 1
  Sums hot;    // tempered, when the temperature is not 1
  float allowed_max = -kInf;
  float allowed_mass = 0.0f;  // tempered, over the allowed tokens
};

// Sums of a whole row in nats, relative to its largest logit.
struct Total {
  double s = 0.0, t = 0.0, q = 0.0;

  // Adds a chunk whose own largest logit weighs `a` = e^(scale d), d <= 0, of the row's.
  SPARK_HOST_DEVICE void add(const Sums& chunk, double scale, double d, double a) {
    const double nats = scale / double(factor_of(scale));
    const double s1 = chunk.s, t1 = nats * chunk.t, q1 = nats * nats * chunk.q;
    d *= scale;
    s += a * s1;
    t += a * (t1 + d * s1);
    q += a * (q1 + 2.0 * d * t1 + d * d * s1);
  }
  SPARK_HOST_DEVICE void add(const Total& other) {
    s += other.s;
    t += other.t;
    q += other.q;
  }
  SPARK_HOST_DEVICE float entropy(double most) const {
    return static_cast<float>(std::fmin(std::fmax(std::log(s) - t / s, 0.0), most));
  }
  SPARK_HOST_DEVICE float varentropy() const {
    const double mean = t / s;
    return static_cast<float>(std::fmax(q / s - mean * mean, 0.0));
  }
};

// Adds a chunk to the sums of its row and returns its tempered mass; `hot` stays empty at scale 1.
SPARK_HOST_DEVICE inline double merge(const Chunk& part, double max, double scale, Total& plain,
                                      Total& hot) {
  if (!(part.plain.s > 0.0f)) return 0.0;
  const double d = double(part.max) - max, a = exp_of(d);
  plain.add(part.plain, 1.0, d, a);
  if (scale == 1.0) return a * part.plain.s;
  const double hot_a = exp_of(scale * d);
  hot.add(part.hot, scale, d, hot_a);
  return hot_a * part.hot.s;
}

SPARK_HOST_DEVICE inline bool is_invalid(const Chunk& part) {
  return std::isnan(part.max) || std::isnan(part.plain.t);
}

// The mass of a chunk's allowed tokens, relative to the row's largest allowed logit.
SPARK_HOST_DEVICE inline uint64_t allowed_mass(const Chunk& part, double max, double scale) {
  if (!(part.allowed_mass > 0.0f)) return 0;
  return fixed(part.allowed_mass * exp_of(scale * (double(part.allowed_max) - max)));
}

SPARK_HOST_DEVICE inline float log_probability(double v) {
  return static_cast<float>(std::fmin(v, 0.0));
}

SPARK_HOST_DEVICE inline float temperature_of(const SparkScore& a, int64_t r) {
  return a.temperature == nullptr ? 1.0f : a.temperature[r];
}
// 1 / temperature; greedy rows are scored at temperature 1.
SPARK_HOST_DEVICE inline double scale_of(float temperature) {
  return temperature == 1.0f || temperature == 0.0f ? 1.0 : 1.0 / double(temperature);
}

// Everything about one row that its chunks have in common.
struct Row {
  bool valid, greedy;
  double scale;  // 1 / temperature

  SPARK_HOST_DEVICE Row(const SparkScore& a, int64_t r) {
    const float t = temperature_of(a, r);
    greedy = t == 0.0f;
    scale = scale_of(t);
    // below this 1 / temperature would leave the range in which the sums are exact
    valid = (greedy || (t >= 1e-5f && !std::isinf(t))) && (a.top_k == nullptr || a.top_k[r] >= 0) &&
            (a.top_p == nullptr || (a.top_p[r] > 0.0f && a.top_p[r] <= 1.0f)) &&
            (a.min_p == nullptr || (a.min_p[r] >= 0.0f && a.min_p[r] <= 1.0f)) &&
            (a.given == nullptr || (a.given[r] >= -1 && a.given[r] < a.vocab));
  }
  SPARK_HOST_DEVICE bool tempered() const { return scale != 1.0; }
};

// A row's sums, and the distribution its token was drawn from.
struct Result {
  double max;  // largest logit of all
  Total plain, hot;
  double drawn_max;  // largest logit of those allowed
  uint64_t kept;     // mass of the kept tokens, relative to `drawn_max`
  bool everything;   // nothing was masked or truncated
};

SPARK_HOST_DEVICE inline void write_scores(const SparkScore& a, int64_t r, const Row& row,
                                           const Result& found, int64_t token, double logit) {
  const double log_sum = std::log(found.hot.s), most = std::log(double(a.vocab));
  a.tokens[r] = token;
  a.logprob[r] = log_probability(row.scale * (logit - found.max) - log_sum);
  const double down = row.scale * (found.drawn_max - found.max);
  const double kept = std::log(double(found.kept) * 0x1p-44);
  a.log_kept_mass[r] = found.everything ? 0.0f : log_probability(down + kept - log_sum);
  a.entropy[r] = found.plain.entropy(most);
  a.varentropy[r] = found.plain.varentropy();
  if (a.entropy_tempered != nullptr) {
    a.entropy_tempered[r] = found.hot.entropy(most);
    a.varentropy_tempered[r] = found.hot.varentropy();
  }
}

// An invalid row: nothing can be said of it.
SPARK_HOST_DEVICE inline void write_failure(const SparkScore& a, int64_t r) {
  a.tokens[r] = -1;
  a.logprob[r] = a.log_kept_mass[r] = a.entropy[r] = a.varentropy[r] = kNan;
  if (a.entropy_tempered != nullptr) a.entropy_tempered[r] = a.varentropy_tempered[r] = kNan;
}

}  // namespace
