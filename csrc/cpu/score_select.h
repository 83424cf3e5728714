// Truncation without sorting the vocabulary: a histogram of everything above a safe bound, then an
// exact walk through the one bucket in which the cut falls.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "score_chunk.h"

namespace {

struct Part {
  float max;
  uint64_t mass;
};

// A distribution to draw from: the tokens of a row that are allowed and kept, tempered.
template <typename T>
struct Base {
  Slice<T> row;
  double scale;              // 1 / temperature
  float max;                 // largest allowed logit, -inf when there is none
  uint64_t total;            // the mass of all tokens
  std::vector<Part>& parts;  // largest logit and mass of each chunk; the masses add up to the total
  Cut cut;

  Power power() const { return {max, scale}; }
  Weights<T> weights(const Slice<T>& chunk, int64_t index, const Power& power) const {
    return {chunk, index * kChunk, power, cut};
  }
};

// The k-th largest of the chunks' maxima: k tokens are at least as large.
inline float top_k_bound(const std::vector<Part>& parts, int64_t k) {
  if (k > static_cast<int64_t>(parts.size())) return kLowest;
  thread_local std::vector<Part> tops;
  tops = parts;
  const auto kth = tops.begin() + (k - 1);
  std::nth_element(tops.begin(), kth, tops.end(),
                   [](const Part& a, const Part& b) { return a.max > b.max; });
  return kth->max;
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
  uint64_t mass[kSize] = {};

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
  float x;
  uint64_t weight;
  int64_t token;
};

// Walks the members of one bucket in order until `most` tokens or `enough` mass are seen.
inline Prefix walk(std::vector<Candidate>& members, int64_t count, uint64_t mass, int64_t most,
                   uint64_t enough) {
  std::sort(members.begin(), members.end(), [](const Candidate& a, const Candidate& b) {
    return a.x > b.x || (a.x == b.x && a.token < b.token);
  });
  for (const Candidate& c : members) {
    mass += c.weight;
    if (++count >= most || mass >= enough) return {{c.x, c.token}, mass};
  }
  return {{members.back().x, members.back().token}, mass};
}

// The shortest prefix of `most` tokens or `enough` mass; `bound` is a logit below which it has
// none.
template <typename T>
Prefix find_cut(const Base<T>& base, int64_t most, uint64_t enough, float bound) {
  const Power power = base.power();
  Histogram histogram(base.max, bound, base.scale);
  visit_above(base, bound, [&](F x, int64_t, uint32_t bits) {
    int32_t bucket[kLanes];
    float weight[kLanes];
    Simd::store(bucket, Simd::whole(histogram.place(x)));
    Simd::store(weight, exp2_clamped(clamp(power(x))));
    for (; bits != 0; bits &= bits - 1) {
      const int lane = std::countr_zero(bits);
      ++histogram.count[bucket[lane]];
      histogram.mass[bucket[lane]] += fixed(weight[lane]);
    }
  });
  int at = 0;
  int64_t count = 0;
  uint64_t mass = 0;
  while (count + histogram.count[at] < most && mass + histogram.mass[at] < enough) {
    count += histogram.count[at];
    mass += histogram.mass[at];
    if (++at == Histogram::kSize) return {{bound}, mass};
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
      members.push_back({logit[lane], fixed(weight[lane]), start + lane});
    }
  });
  return walk(members, count, mass, most, enough);
}

// Restricts the distribution to the tokens up to its cut.
template <typename T>
void keep_to_cut(Base<T>& base) {
  const Power power = base.power();
  base.total = 0;
  for (size_t c = 0; c < base.parts.size(); ++c) {
    Part& part = base.parts[c];
    const Slice<T> chunk = base.row.chunk(c);
    const bool any = part.max >= base.cut.x;
    part.mass = any ? base.weights(chunk, c, power).mass(0, chunk.vectors()) : 0;
    base.total += part.mass;
  }
}

// Restricts the distribution to what the filter keeps; top-p judges what top-k has left.
template <typename T>
void truncate(Base<T>& base, const Filter& filter) {
  uint64_t left = base.total;
  if (filter.min_p > 0.0) base.cut.x = min_p_bound(base.max, base.scale, filter.min_p);
  if (filter.top_k > 0) {
    const float bound = top_k_bound(base.parts, filter.top_k);
    const Prefix found = find_cut(base, filter.top_k, kEndless, bound);
    if (found.cut.before(base.cut)) base.cut = found.cut;
    left = found.mass;
  }
  if (filter.top_p < 1.0) {
    const float bound = top_p_bound(base.max, base.scale, filter.top_p, left, base.row.size);
    const uint64_t enough = enough_of(filter.top_p, left);
    const Prefix found = find_cut(base, kNoToken, enough, bound);
    if (found.cut.before(base.cut)) base.cut = found.cut;
  }
  keep_to_cut(base);
}

// The token at `point` of [0, total); reads one chunk.
template <typename T>
int64_t token_at(const Base<T>& base, uint64_t point) {
  size_t c = 0;
  for (; point >= base.parts[c].mass; ++c) point -= base.parts[c].mass;
  const Part& part = base.parts[c];
  const Slice<T> chunk = base.row.chunk(c);
  const Weights<T> weights = base.weights(chunk, c, Power(part.max, base.scale));
  return weights.at(rescaled(point, part.mass, weights.mass(0, chunk.vectors())));
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
