// Truncation without sorting the vocabulary: a histogram of everything above a safe bound, then an
// exact walk through the one bucket in which the cut falls.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "score_chunk.h"

namespace {

struct Part {
  float max;
  double mass;
};

// A distribution to draw from: the tokens of a row that are allowed and kept, tempered.
template <typename T>
struct Base {
  Slice<T> row;
  double scale;              // 1 / temperature
  float max;                 // largest allowed logit, -inf when there is none
  double total;              // sum of e^(scale (x - max))
  std::vector<Part>& parts;  // the same of each chunk; the masses add up to the total
  Cut cut;

  Power power() const { return {max, scale}; }
};

struct Filter {
  int64_t top_k;  // 0 = off
  double top_p;   // 1 = off
  double min_p;   // 0 = off

  bool ranked() const { return top_k > 0 || top_p < 1.0; }
  bool off() const { return !ranked() && min_p <= 0.0; }
};

inline float below(double v) { return std::nextafterf(static_cast<float>(v), -kInf); }

// The smallest float x with scale * (x - max) >= log(min_p).
inline float min_p_bound(float max, double scale, double min_p) {
  const double least = std::log(min_p);
  float x = static_cast<float>(double(max) + least / scale);
  const auto passes = [&](float v) { return scale * (double(v) - double(max)) >= least; };
  while (!passes(x)) x = std::nextafterf(x, kInf);
  while (passes(std::nextafterf(x, -kInf))) x = std::nextafterf(x, -kInf);
  return x;
}

// The k-th largest of the chunks' maxima: k tokens are at least as large.
inline float top_k_bound(const std::vector<Part>& parts, int64_t k) {
  thread_local std::vector<Part> tops;
  tops = parts;
  const auto kth = tops.begin() + (k - 1);
  std::nth_element(tops.begin(), kth, tops.end(),
                   [](const Part& a, const Part& b) { return a.max > b.max; });
  return kth->max;
}

// A logit below which nothing can be kept.
template <typename T>
float kept_bound(const Base<T>& base, const Filter& filter) {
  float bound = std::numeric_limits<float>::lowest();
  if (filter.min_p > 0.0) bound = min_p_bound(base.max, base.scale, filter.min_p);
  if (filter.top_p < 1.0) {
    // all tokens further than this from the largest weigh less than what top-p leaves out
    const double left = (1.0 - filter.top_p) * base.total / double(base.row.size);
    bound = std::max(bound, below(double(base.max) + (std::log(left) - 1e-3) / base.scale));
  }
  if (filter.top_k > 0 && filter.top_k <= static_cast<int64_t>(base.parts.size())) {
    bound = std::max(bound, top_k_bound(base.parts, filter.top_k));
  }
  return bound;
}

// Calls visit(logits, first token, bits) for each vector with a logit of at least `bound`.
template <typename T, typename Visit>
void visit_above(const Base<T>& base, float bound, Visit visit) {
  const F limit = Simd::set(bound);
  for (size_t c = 0; c < base.parts.size(); ++c) {
    if (!(base.parts[c].max >= bound)) continue;
    const Slice<T> chunk = base.row.chunk(c);
    for (int64_t v = 0; v < chunk.vectors(); ++v) {
      const F x = load(chunk, v);
      const uint32_t bits = Simd::at_least(x, limit);
      if (bits != 0) visit(x, c * kChunk + v * kLanes, bits);
    }
  }
}

// Buckets by logit: bucket 0 holds the largest, and every bucket is a run of the sorted order.
struct Histogram {
  static constexpr int kSize = 1024;
  F high, scale;
  int64_t count[kSize] = {};
  double mass[kSize] = {};

  Histogram(float max, float bound, double temperature_scale) : high(Simd::set(max)) {
    // what lies further than 60 nats down shares the last bucket
    const double range = std::min(double(max) - double(bound), 60.0 / temperature_scale);
    scale = Simd::set(static_cast<float>(kSize / std::max(range, 1e-30)));
  }
  // Whole numbers are the first points of buckets.
  F place(F x) const {
    // a negated maximum: Simd has no minimum
    const F zero = Simd::set(0.0f), last = Simd::set(1.0f - kSize);
    const F at = Simd::mul(Simd::sub(high, x), scale);
    return Simd::sub(zero, Simd::max(Simd::sub(zero, at), last));
  }
  // Bits of the lanes that lie in one bucket.
  uint32_t inside(F x, int bucket) const {
    const F at = place(x);
    const uint32_t later = Simd::at_least(at, Simd::set(bucket + 1.0f));
    return Simd::at_least(at, Simd::set(static_cast<float>(bucket))) & ~later;
  }
};

struct Candidate {
  float x, weight;
  int64_t token;
};

// Walks the members of one bucket in order until `most` tokens or `enough` mass are seen.
inline Cut walk(std::vector<Candidate>& members, int64_t count, double mass, int64_t most,
                double enough) {
  std::sort(members.begin(), members.end(), [](const Candidate& a, const Candidate& b) {
    return a.x > b.x || (a.x == b.x && a.token < b.token);
  });
  for (const Candidate& c : members) {
    mass += c.weight;
    if (++count >= most || mass >= enough) return {c.x, c.token};
  }
  return {members.back().x, members.back().token};
}

// The cut of top-k and top-p; `bound` is a logit below which they keep nothing.
template <typename T>
Cut find_cut(const Base<T>& base, const Filter& filter, float bound) {
  const int64_t most = filter.top_k > 0 ? filter.top_k : std::numeric_limits<int64_t>::max();
  const double enough = filter.top_p < 1.0 ? filter.top_p * base.total : kInf;
  const Power power = base.power();
  Histogram histogram(base.max, bound, base.scale);
  visit_above(base, bound, [&](F x, int64_t, uint32_t bits) {
    int32_t bucket[kLanes];
    float weight[kLanes];
    Simd::store(bucket, histogram.place(x));
    Simd::store(weight, exp2_clamped(clamp(power(x))));
    for (; bits != 0; bits &= bits - 1) {
      const int lane = std::countr_zero(bits);
      ++histogram.count[bucket[lane]];
      histogram.mass[bucket[lane]] += weight[lane];
    }
  });
  int at = 0;
  int64_t count = 0;
  double mass = 0.0;
  while (count + histogram.count[at] < most && mass + histogram.mass[at] < enough) {
    count += histogram.count[at];
    mass += histogram.mass[at];
    if (++at == Histogram::kSize) return {bound};
  }
  thread_local std::vector<Candidate> members;
  members.clear();
  visit_above(base, bound, [&](F x, int64_t start, uint32_t bits) {
    bits &= histogram.inside(x, at);
    if (bits == 0) return;
    float logit[kLanes], weight[kLanes];
    Simd::store(logit, x);
    Simd::store(weight, exp2_clamped(clamp(power(x))));
    for (; bits != 0; bits &= bits - 1) {
      const int lane = std::countr_zero(bits);
      members.push_back({logit[lane], weight[lane], start + lane});
    }
  });
  return walk(members, count, mass, most, enough);
}

// Restricts the distribution to the tokens up to `cut`.
template <typename T>
void keep_to(Base<T>& base, const Cut& cut) {
  base.cut = cut;
  const Power power = base.power();
  base.total = 0.0;
  for (size_t c = 0; c < base.parts.size(); ++c) {
    Part& part = base.parts[c];
    const bool any = part.max >= base.cut.x;
    part.mass = any ? kept_mass(base.row.chunk(c), c * kChunk, power, base.cut) : 0.0;
    base.total += part.mass;
  }
}

// Restricts the distribution to what the filter keeps.
template <typename T>
void truncate(Base<T>& base, const Filter& filter) {
  if (filter.top_k > 0 && filter.top_p < 1.0) {
    // top-p judges what top-k has left
    truncate(base, {filter.top_k, 1.0, 0.0});
    const Cut ranked = base.cut;
    truncate(base, {0, filter.top_p, filter.min_p});
    if (ranked.before(base.cut)) keep_to(base, ranked);
    return;
  }
  const float bound = kept_bound(base, filter);
  keep_to(base, filter.ranked() ? find_cut(base, filter, bound) : Cut{bound});
}

// The token in whose share of the total `u` in [0, 1) falls; reads one chunk.
template <typename T>
int64_t draw_token(const Base<T>& base, double u) {
  double target = u * base.total;
  int64_t chunk = -1;
  for (size_t c = 0; c < base.parts.size(); ++c) {
    if (base.parts[c].mass == 0.0) continue;
    if (chunk >= 0) target -= base.parts[chunk].mass;
    chunk = c;
    if (target < base.parts[c].mass) break;
  }
  const Part& part = base.parts[chunk];
  const double fraction = std::min(target / part.mass, 1.0);
  const Power power(part.max, base.scale);
  return draw(base.row.chunk(chunk), chunk * kChunk, power, base.cut, fraction);
}

// The first of the largest.
template <typename T>
int64_t argmax(const Base<T>& base) {
  const F limit = Simd::set(base.max);
  size_t c = 0;
  while (base.parts[c].max != base.max) ++c;
  const Slice<T> chunk = base.row.chunk(c);
  int64_t v = 0;
  uint32_t bits = 0;
  while ((bits = Simd::at_least(load(chunk, v), limit)) == 0) ++v;
  return c * kChunk + v * kLanes + std::countr_zero(bits);
}

}  // namespace
