// Truncation without sorting the vocabulary: candidates above a safe bound, a histogram over them,
// and an exact walk through the one bucket in which the cut falls.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "score_chunk.h"

namespace {

struct Part {
  float max;
  double mass;
};

// The untruncated distribution to draw from: the allowed tokens of a row, tempered.
template <typename T>
struct Base {
  Slice<T> row;
  float scale;                     // 1 / temperature
  float max;                       // largest allowed logit, -inf when there is none
  double total;                    // sum of e^(scale (x - max)) over the allowed
  const std::vector<Part>& parts;  // the same of each chunk; the masses add up to total

  int64_t chunks() const { return static_cast<int64_t>(parts.size()); }
};

struct Filter {
  int64_t top_k;  // 0 = off
  double top_p;   // 1 = off
  double min_p;   // 0 = off

  bool off() const { return top_k == 0 && top_p >= 1.0 && min_p <= 0.0; }
};

struct Candidate {
  float x, weight;
  int64_t token;
};

// The last token kept in the order (logit falling, token rising).
struct Cut {
  float x;
  int64_t token;

  bool keeps(const Candidate& c) const { return c.x > x || (c.x == x && c.token <= token); }
};

constexpr Cut kKeepAll = {-kInf, std::numeric_limits<int64_t>::max()};

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

// A logit below which nothing can be kept.
template <typename T>
float candidate_bound(const Base<T>& base, const Filter& filter) {
  float bound = std::numeric_limits<float>::lowest();
  if (filter.min_p > 0.0) bound = min_p_bound(base.max, base.scale, filter.min_p);
  if (filter.top_p < 1.0) {
    // all tokens further than this from the largest weigh less than what top-p leaves out
    const double left = (1.0 - filter.top_p) * base.total / double(base.row.size);
    bound = std::max(bound, below(double(base.max) + (std::log(left) - 1e-3) / base.scale));
  }
  if (filter.top_k > 0 && filter.top_k <= base.chunks()) {
    // k chunks hold k tokens at least as large as the k-th largest of their maxima
    thread_local std::vector<Candidate> tops;
    tops.resize(base.parts.size());
    for (int64_t c = 0; c < base.chunks(); ++c) tops[c] = {base.parts[c].max, 0.0f, c};
    const auto kth = tops.begin() + (filter.top_k - 1);
    std::nth_element(tops.begin(), kth, tops.end(),
                     [](const Candidate& a, const Candidate& b) { return a.x > b.x; });
    bound = std::max(bound, kth->x);
  }
  return bound;
}

// Tokens of at least `bound`, in rising order.
template <typename T>
void collect(const Base<T>& base, float bound, std::vector<Candidate>& found) {
  found.clear();
  const F limit = Simd::set(bound), shift = Simd::set(base.max), factor = Simd::set(base.scale);
  for (int64_t c = 0; c < base.chunks(); ++c) {
    if (!(base.parts[c].max >= bound)) continue;
    const Slice<T> chunk = base.row.chunk(c);
    for (int64_t v = 0; v < chunk.vectors(); ++v) {
      const F x = load(chunk, v);
      uint32_t bits = Simd::at_least(x, limit);
      if (bits == 0) continue;
      float logit[kLanes], weight[kLanes];
      Simd::store(logit, x);
      Simd::store(weight, exp_clamped(clamp(Simd::mul(factor, Simd::sub(x, shift)))));
      for (; bits != 0; bits &= bits - 1) {
        const int lane = std::countr_zero(bits);
        found.push_back({logit[lane], weight[lane], c * kChunk + v * kLanes + lane});
      }
    }
  }
}

// The cut of top-k and top-p among candidates that hold everything they could keep.
inline Cut find_cut(const std::vector<Candidate>& found, const Filter& filter, double total) {
  constexpr int kBuckets = 1024;
  struct Bucket {
    int64_t count;
    double mass;
  };
  const int64_t most = filter.top_k > 0 ? filter.top_k : std::numeric_limits<int64_t>::max();
  const double enough = filter.top_p < 1.0 ? filter.top_p * total : 2.0 * total;
  float high = -kInf, low = kInf;
  for (const Candidate& c : found) {
    high = c.x > high ? c.x : high;
    low = c.x < low ? c.x : low;
  }
  const float per_bucket = high > low ? kBuckets / (high - low) : 0.0f;
  // falls with the logit, so that buckets are runs of the sorted order
  const auto bucket_of = [&](const Candidate& c) {
    const float at = (high - c.x) * per_bucket;
    return at < kBuckets - 1 ? static_cast<int>(at) : kBuckets - 1;
  };
  thread_local std::vector<Bucket> buckets;
  buckets.assign(kBuckets, Bucket{0, 0.0});
  for (const Candidate& c : found) {
    Bucket& bucket = buckets[bucket_of(c)];
    ++bucket.count;
    bucket.mass += c.weight;
  }
  int at = 0;
  int64_t count = 0;
  double mass = 0.0;
  for (; at < kBuckets; ++at) {
    if (count + buckets[at].count >= most || mass + buckets[at].mass >= enough) break;
    count += buckets[at].count;
    mass += buckets[at].mass;
  }
  if (at == kBuckets) return kKeepAll;
  thread_local std::vector<Candidate> members;
  members.clear();
  for (const Candidate& c : found) {
    if (bucket_of(c) == at) members.push_back(c);
  }
  std::sort(members.begin(), members.end(), [](const Candidate& a, const Candidate& b) {
    return a.x > b.x || (a.x == b.x && a.token < b.token);
  });
  for (const Candidate& c : members) {
    mass += c.weight;
    if (++count >= most || mass >= enough) return {c.x, c.token};
  }
  return {members.back().x, members.back().token};
}

struct Kept {
  int64_t token;  // the draw
  double mass;    // in units of Base::total
};

// Truncates, then draws at `u` in [0, 1) among what is kept.
template <typename T>
Kept draw_truncated(const Base<T>& base, const Filter& filter, double u) {
  thread_local std::vector<Candidate> found;
  collect(base, candidate_bound(base, filter), found);
  const bool ranked = filter.top_k > 0 || filter.top_p < 1.0;
  const Cut cut = ranked ? find_cut(found, filter, base.total) : kKeepAll;
  double mass = 0.0;
  for (const Candidate& c : found) mass += cut.keeps(c) ? c.weight : 0.0f;
  const double target = u * mass;
  double seen = 0.0;
  int64_t token = -1;
  for (const Candidate& c : found) {
    if (!cut.keeps(c) || (token >= 0 && c.weight == 0.0f)) continue;
    token = c.token;
    seen += c.weight;
    if (seen > target) break;
  }
  return {token, mass};
}

// The token in whose share of the total `u` in [0, 1) falls; reads one chunk.
template <typename T>
int64_t draw_full(const Base<T>& base, double u) {
  double target = u * base.total;
  int64_t chunk = -1;
  for (int64_t c = 0; c < base.chunks(); ++c) {
    if (base.parts[c].mass == 0.0) continue;
    if (chunk >= 0) target -= base.parts[chunk].mass;
    chunk = c;
    if (target < base.parts[c].mass) break;
  }
  const double fraction = std::min(target / base.parts[chunk].mass, 1.0);
  return chunk * kChunk + draw(base.row.chunk(chunk), base.parts[chunk].max, base.scale, fraction);
}

// The first of the largest.
template <typename T>
int64_t argmax(const Base<T>& base) {
  const F limit = Simd::set(base.max);
  for (int64_t c = 0; c < base.chunks(); ++c) {
    if (base.parts[c].max != base.max) continue;
    const Slice<T> chunk = base.row.chunk(c);
    for (int64_t v = 0; v < chunk.vectors(); ++v) {
      const uint32_t bits = Simd::at_least(load(chunk, v), limit);
      if (bits != 0) return c * kChunk + v * kLanes + std::countr_zero(bits);
    }
  }
  return -1;
}

}  // namespace
