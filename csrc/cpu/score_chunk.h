// Passes over one chunk of a row. Everything here gives the same bits on every instruction set:
// sixteen lanes, a fixed order of additions, and IEEE operations only. Include a simd_*.h first.
#pragma once

#include <algorithm>
#include <cstdint>

#include "spark/score_cut.h"

namespace {

using F = Simd::F;

// A run of logits; `words` are the allowed bits of its tokens, or null.
template <typename T>
struct Slice {
  const T* x;
  int64_t size;
  const uint32_t* words;

  Slice chunk(int64_t index) const {
    const int64_t start = index * kChunk;
    const uint32_t* mine = words == nullptr ? nullptr : words + start / 32;
    return {x + start, std::min(kChunk, size - start), mine};
  }
  int64_t vectors() const { return (size + kLanes - 1) / kLanes; }
};

// Lanes past the end and, with kMasked, forbidden tokens read as -inf.
template <bool kMasked, typename T>
inline F load(const Slice<T>& row, int64_t vector) {
  const int64_t start = vector * kLanes, left = row.size - start;
  F v;
  if (left >= kLanes) [[likely]] {
    v = Simd::load(row.x + start);
  } else {
    float padded[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) padded[i] = i < left ? widened(row.x[start + i]) : -kInf;
    v = Simd::load(padded);
  }
  if constexpr (kMasked) {
    const uint32_t bits = row.words[vector / 2] >> (16 * (vector & 1));
    v = Simd::pick(bits & 0xffff, v, Simd::set(-kInf));
  }
  return v;
}

template <typename T>
inline F load(const Slice<T>& row, int64_t vector) {
  return row.words == nullptr ? load<false>(row, vector) : load<true>(row, vector);
}

// 2^y for y in [kFloor, 0]; error below 1.3 ulp, 1 at 0, and 0 at kFloor.
inline F exp2_clamped(F y) {
  const F round = Simd::set(kRound);
  const F t = Simd::add(y, round);
  const F r = Simd::sub(y, Simd::sub(t, round));
  F p = Simd::set(exp2_coefficient(0));
  for (int i = 1; i < 6; ++i) p = Simd::fma(p, r, Simd::set(exp2_coefficient(i)));
  return Simd::times_power(p, t);
}

// Logits as powers of two.
struct Power {
  F max, factor;

  Power(float m, double scale) : max(Simd::set(m)), factor(Simd::set(factor_of(scale))) {}
  F operator()(F x) const { return Simd::mul(factor, Simd::sub(x, max)); }
};

// The operand order of max lets a NaN through.
inline F clamp(F y) { return Simd::max(Simd::set(kFloor), y); }

// Largest logit; may be NaN if one is, and is not -inf then.
template <bool kMasked, typename T>
float largest(const Slice<T>& row) {
  F a = Simd::set(-kInf), b = a, c = a, d = a;
  int64_t v = 0;
  for (const int64_t full = row.size / kLanes; v + 4 <= full; v += 4) {
    a = Simd::max(a, load<kMasked>(row, v));
    b = Simd::max(b, load<kMasked>(row, v + 1));
    c = Simd::max(c, load<kMasked>(row, v + 2));
    d = Simd::max(d, load<kMasked>(row, v + 3));
  }
  for (; v < row.vectors(); ++v) a = Simd::max(a, load<kMasked>(row, v));
  float lane[kLanes];
  Simd::store(lane, Simd::max(Simd::max(a, b), Simd::max(c, d)));
  float m = lane[0];
  for (int i = 1; i < kLanes; ++i) m = lane[i] > m ? lane[i] : m;
  if (kMasked || m != -kInf) return m;
  for (int64_t i = 0; i < row.size; ++i) {
    if (widened(row.x[i]) != -kInf) return widened(row.x[i]);
  }
  return m;
}

// Halves added until one is left, of the runs and then of the lanes.
inline float tree_sum(F* runs) {
  for (int width = kRuns / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) runs[i] = Simd::add(runs[i], runs[i + width]);
  }
  return Simd::sum(runs[0]);
}

template <bool kMoments, bool kMasked, typename T>
Sums sums(const Slice<T>& row, const Power& power) {
  // four runs at a time: their vectors are neighbours in memory
  constexpr int64_t kTogether = 4;
  F s[kRuns], t[kRuns], q[kRuns];
  const T* ahead = row.x + 2 * kChunk;
  const int64_t end = row.vectors();
  for (int64_t run = 0; run < kRuns; run += kTogether) {
    F s_run[kTogether], t_run[kTogether], q_run[kTogether];
    for (int64_t i = 0; i < kTogether; ++i) s_run[i] = t_run[i] = q_run[i] = Simd::set(0.0f);
    const auto add = [&](int64_t i, int64_t v) {
      // the chunks to come arrive while this one is being summed
      __builtin_prefetch(ahead);
      ahead += kLanes;
      const F y = clamp(power(load<kMasked>(row, v)));
      const F e = exp2_clamped(y);
      s_run[i] = Simd::add(s_run[i], e);
      if constexpr (kMoments) {
        const F ye = Simd::mul(y, e);
        t_run[i] = Simd::add(t_run[i], ye);
        q_run[i] = Simd::fma(y, ye, q_run[i]);
      }
    };
    int64_t v = run;
    for (; v + kTogether <= end; v += kRuns) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kTogether; ++i) add(i, v + i);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kTogether; ++i) {
      if (v + i < end) add(i, v + i);
    }
    for (int64_t i = 0; i < kTogether; ++i) {
      s[run + i] = s_run[i];
      t[run + i] = t_run[i];
      q[run + i] = q_run[i];
    }
  }
  return {tree_sum(s), tree_sum(t), tree_sum(q)};
}

// Bits of the lanes of `v` that the cut keeps; its first lane is token `start`.
inline uint32_t kept_lanes(const Cut& cut, F v, int64_t start) {
  const F edge = Simd::set(cut.x);
  const uint32_t kept = Simd::at_least(v, edge);
  if (cut.token >= start + kLanes - 1) return kept;
  const uint32_t ties = kept & Simd::at_least(edge, v);
  const uint32_t early = cut.token < start ? 0u : (2u << (cut.token - start)) - 1u;
  return kept & (~ties | early);
}

// A run of vectors of one chunk whose first token is `start`, as weights: 0 where not kept.
template <typename T>
struct Weights {
  const Slice<T>& chunk;
  int64_t start;
  Power power;
  const Cut& cut;

  F operator()(int64_t vector) const {
    const F x = load(chunk, vector);
    const uint32_t kept = kept_lanes(cut, x, start + vector * kLanes);
    if (kept == 0) return Simd::set(0.0f);
    return Simd::pick(kept, exp2_clamped(clamp(power(x))), Simd::set(0.0f));
  }
  // The sum of the weights of vectors [begin, end) as a whole number.
  uint64_t mass(int64_t begin, int64_t end) const {
    const F scale = Simd::set(0x1p22f);
    Simd::I high = Simd::whole(Simd::set(0.0f)), low = high;
    for (int64_t v = begin; v < end; ++v) {
      const F w = Simd::mul((*this)(v), scale);
      const Simd::I whole = Simd::whole(w);
      high = Simd::add(high, whole);
      low = Simd::add(low, Simd::whole(Simd::mul(Simd::sub(w, Simd::real(whole)), scale)));
    }
    int32_t highs[kLanes], lows[kLanes];
    Simd::store(highs, high);
    Simd::store(lows, low);
    uint64_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += (uint64_t(highs[i]) << 22) + uint64_t(lows[i]);
    return total;
  }
  // The token at which the running sum of weights passes `point` of [0, mass of the chunk).
  int64_t at(uint64_t point) const {
    constexpr int64_t kGroup = 8;
    int64_t v = 0;
    for (;; v += kGroup) {
      const uint64_t group = mass(v, std::min(v + kGroup, chunk.vectors()));
      if (point < group) break;
      point -= group;
    }
    for (;; ++v) {
      float w[kLanes];
      Simd::store(w, (*this)(v));
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        if (point < fixed(w[lane])) return start + v * kLanes + lane;
        point -= fixed(w[lane]);
      }
    }
  }
};

}  // namespace
