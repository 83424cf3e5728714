// Passes over one chunk of a row. Everything here gives the same bits on every instruction set:
// sixteen lanes, a fixed order of additions, and IEEE operations only. Include a simd_*.h first.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

namespace {

// the split of a row depends on nothing but its length: results do not depend on batch or threads
constexpr int64_t kChunk = 2048;
constexpr int64_t kLanes = 16;
// additions into one lane before it is set aside: keeps the rounding error of the sums small
constexpr int64_t kRun = 32;
constexpr float kInf = std::numeric_limits<float>::infinity();
// weights of 2^kFloor of the largest and less count as that: nothing
constexpr float kFloor = -124.0f;

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

inline float value(const float* x, int64_t i) { return x[i]; }
inline float value(const uint16_t* x, int64_t i) {
  return std::bit_cast<float>(uint32_t(x[i]) << 16);
}

// Lanes past the end and, with kMasked, forbidden tokens read as -inf.
template <bool kMasked, typename T>
inline F load(const Slice<T>& row, int64_t vector) {
  const int64_t start = vector * kLanes, left = row.size - start;
  F v;
  if (left >= kLanes) [[likely]] {
    v = Simd::load(row.x + start);
  } else {
    float padded[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) padded[i] = i < left ? value(row.x, start + i) : -kInf;
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

// 2^y for y in [kFloor, 0]; error below 1.3 ulp, and 1 at 0.
inline F exp2_clamped(F y) {
  const F round = Simd::set(12582912.0f);
  const F t = Simd::add(y, round);
  const F r = Simd::sub(y, Simd::sub(t, round));
  F p = Simd::set(0x1.5bda58p-10f);
  p = Simd::fma(p, r, Simd::set(0x1.3ce8acp-7f));
  p = Simd::fma(p, r, Simd::set(0x1.c6b6d8p-5f));
  p = Simd::fma(p, r, Simd::set(0x1.ebf9c2p-3f));
  p = Simd::fma(p, r, Simd::set(0x1.62e42ap-1f));
  p = Simd::fma(p, r, Simd::set(1.0f));
  return Simd::times_power(p, t);
}

// Logits as powers of two: y = (x - max) * scale * log2(e), never above 0.
struct Power {
  F max, scale;
  double nats;  // one unit of y in nats; not quite ln 2, because the factor was rounded

  Power(float m, double s) : max(Simd::set(m)) {
    const float factor = static_cast<float>(s * 1.44269504088896340736);
    scale = Simd::set(factor);
    nats = s / double(factor);
  }
  F operator()(F x) const { return Simd::mul(scale, Simd::sub(x, max)); }
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
    if (value(row.x, i) != -kInf) return value(row.x, i);
  }
  return m;
}

// Over a run of logits, with y as in Power but in nats: sums of e^y, y e^y and y^2 e^y.
struct Sums {
  float s = 0.0f, t = 0.0f, q = 0.0f;
};

template <bool kMoments, bool kMasked, typename T>
Sums sums(const Slice<T>& row, const Power& power) {
  const F zero = Simd::set(0.0f);
  F s = zero, t = zero, q = zero;
  const int64_t end = row.vectors();
  for (int64_t v = 0; v < end;) {
    F s_run = zero, t_run = zero, q_run = zero;
#pragma GCC unroll 4
    for (const int64_t stop = std::min(v + kRun, end); v < stop; ++v) {
      // the chunks to come arrive while this one is being summed
      __builtin_prefetch(row.x + v * kLanes + 2 * kChunk);
      const F y = clamp(power(load<kMasked>(row, v)));
      const F e = exp2_clamped(y);
      s_run = Simd::add(s_run, e);
      if constexpr (kMoments) {
        const F ye = Simd::mul(y, e);
        t_run = Simd::add(t_run, ye);
        q_run = Simd::fma(y, ye, q_run);
      }
    }
    s = Simd::add(s, s_run);
    t = Simd::add(t, t_run);
    q = Simd::add(q, q_run);
  }
  const double nats = power.nats;
  return {Simd::sum(s), static_cast<float>(nats * Simd::sum(t)),
          static_cast<float>(nats * nats * Simd::sum(q))};
}

// The last token kept in the order (logit falling, token rising).
struct Cut {
  float x = -kInf;
  int64_t token = std::numeric_limits<int64_t>::max();

  // Whether it comes first in the order (logit falling, index rising).
  bool before(const Cut& other) const {
    return x > other.x || (x == other.x && token < other.token);
  }
  // Bits of the lanes of `v` that are kept; its first lane is token `start`.
  uint32_t keeps(F v, int64_t start) const {
    const F edge = Simd::set(x);
    const uint32_t kept = Simd::at_least(v, edge);
    if (token >= start + kLanes - 1) return kept;
    const uint32_t ties = kept & Simd::at_least(edge, v);
    const uint32_t early = token < start ? 0u : (2u << (token - start)) - 1u;
    return kept & (~ties | early);
  }
};

// The weight 2^y of each token that is kept; exactly 0 for the others and for -inf.
template <typename T>
inline F weight(const Slice<T>& chunk, int64_t vector, int64_t start, const Power& power,
                const Cut& cut) {
  const F x = load(chunk, vector), y = power(x);
  const uint32_t kept = cut.keeps(x, start + vector * kLanes);
  if (kept == 0) return Simd::set(0.0f);
  const uint32_t some = Simd::at_least(y, Simd::set(kFloor));
  return Simd::pick(kept & some, exp2_clamped(clamp(y)), Simd::set(0.0f));
}

// The sum of a chunk's kept weights; `start` is its first token.
template <typename T>
double kept_mass(const Slice<T>& chunk, int64_t start, const Power& power, const Cut& cut) {
  double total = 0.0;
  for (int64_t v = 0; v < chunk.vectors();) {
    F run = Simd::set(0.0f);
    for (const int64_t stop = std::min(v + kRun, chunk.vectors()); v < stop; ++v) {
      run = Simd::add(run, weight(chunk, v, start, power, cut));
    }
    total += Simd::sum(run);
  }
  return total;
}

// Steps over `sums` while the target lies past them; the last is never passed.
inline int64_t step_over(const float* sums, int64_t count, double& target) {
  int64_t i = 0;
  while (i + 1 < count && target >= sums[i]) target -= sums[i++];
  return i;
}

// The token of a chunk at which the running sum of kept weights passes `fraction` of their total:
// first its group of vectors is found, then its vector, then its lane.
template <typename T>
int64_t draw(const Slice<T>& chunk, int64_t start, const Power& power, const Cut& cut,
             double fraction) {
  constexpr int64_t kGroup = 8;
  const int64_t vectors = chunk.vectors(), groups = (vectors + kGroup - 1) / kGroup;
  float group_sums[kChunk / kLanes / kGroup], sums[kGroup], w[kGroup * kLanes];
  double total = 0.0;
  int64_t last = 0;
  for (int64_t g = 0; g < groups; ++g) {
    F group = Simd::set(0.0f);
    for (int64_t v = g * kGroup; v < std::min((g + 1) * kGroup, vectors); ++v) {
      group = Simd::add(group, weight(chunk, v, start, power, cut));
    }
    group_sums[g] = Simd::sum(group);
    total += group_sums[g];
    if (group_sums[g] > 0.0f) last = g;
  }
  double target = fraction * total;
  const int64_t first = kGroup * step_over(group_sums, last + 1, target);
  const int64_t count = std::min(kGroup, vectors - first);
  for (int64_t v = 0; v < count; ++v) {
    const F one = weight(chunk, first + v, start, power, cut);
    Simd::store(w + v * kLanes, one);
    sums[v] = Simd::sum(one);
  }
  int64_t lane = kLanes * step_over(sums, count, target);
  // rounding may leave the target past the end: then the last token with a weight is drawn
  int64_t token = -1;
  for (; lane < count * kLanes; ++lane) {
    if (w[lane] == 0.0f) continue;
    token = lane;
    if (target < w[lane]) break;
    target -= w[lane];
  }
  for (lane = count * kLanes - 1; token < 0; --lane) token = w[lane] > 0.0f ? lane : -1;
  return start + first * kLanes + token;
}

}  // namespace
