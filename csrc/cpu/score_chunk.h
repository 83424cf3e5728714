// Passes over one chunk of a row. Everything here gives the same bits on every instruction set:
// sixteen lanes, a fixed order of additions, and IEEE operations only. Include a simd_*.h first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace {

// the split of a row depends on nothing but its length: results do not depend on batch or threads
constexpr int64_t kChunk = 2048;
constexpr int64_t kLanes = 16;
// additions into one lane before it is set aside: keeps the rounding error of the sums small
constexpr int64_t kRun = 32;
constexpr float kInf = std::numeric_limits<float>::infinity();
// exp(d) below this is taken as exp(kFloor), 4e-38 of the chunk's largest: nothing
constexpr float kFloor = -86.0f;

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
  Slice unmasked() const { return {x, size, nullptr}; }
  int64_t vectors() const { return (size + kLanes - 1) / kLanes; }
};

inline float value(const float* x, int64_t i) { return x[i]; }
inline float value(const uint16_t* x, int64_t i) {
  float out;
  const uint32_t bits = uint32_t(x[i]) << 16;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

// Lanes past the end and forbidden tokens read as -inf.
template <typename T>
inline F load(const Slice<T>& row, int64_t vector) {
  const int64_t start = vector * kLanes, left = row.size - start;
  F v;
  if (left >= kLanes) {
    v = Simd::load(row.x + start);
  } else {
    float padded[kLanes];
    std::fill(padded, padded + kLanes, -kInf);
    for (int64_t i = 0; i < left; ++i) padded[i] = value(row.x, start + i);
    v = Simd::load(padded);
  }
  if (row.words == nullptr) return v;
  const uint32_t bits = row.words[vector / 2] >> (16 * (vector & 1));
  return Simd::pick(bits & 0xffff, v, Simd::set(-kInf));
}

// exp for arguments in [kFloor, 0]; error below 1 ulp.
inline F exp_clamped(F d) {
  const F round = Simd::set(12582912.0f);
  const F t = Simd::fma(d, Simd::set(1.44269504088896341f), round);
  const F n = Simd::sub(t, round);
  F r = Simd::fma(n, Simd::set(-0.693359375f), d);
  r = Simd::fma(n, Simd::set(2.12194440e-4f), r);
  F p = Simd::set(1.9875691500e-4f);
  p = Simd::fma(p, r, Simd::set(1.3981999507e-3f));
  p = Simd::fma(p, r, Simd::set(8.3334519073e-3f));
  p = Simd::fma(p, r, Simd::set(4.1665795894e-2f));
  p = Simd::fma(p, r, Simd::set(1.6666665459e-1f));
  p = Simd::fma(p, r, Simd::set(5.0000001201e-1f));
  p = Simd::fma(p, r, Simd::set(1.0f));
  p = Simd::fma(p, r, Simd::set(1.0f));
  return Simd::times_power(p, t);
}

// The operand order of max lets a NaN through.
inline F clamp(F d) { return Simd::max(Simd::set(kFloor), d); }

inline float sum(F v) {
  float lane[kLanes];
  Simd::store(lane, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// Largest logit; NaN when all others are -inf and one is NaN, and possibly otherwise.
template <typename T>
float largest(const Slice<T>& row) {
  F a = Simd::set(-kInf), b = a, c = a, d = a;
  int64_t v = 0;
  for (const int64_t full = row.size / kLanes; v + 4 <= full; v += 4) {
    a = Simd::max(a, load(row, v));
    b = Simd::max(b, load(row, v + 1));
    c = Simd::max(c, load(row, v + 2));
    d = Simd::max(d, load(row, v + 3));
  }
  for (; v < row.vectors(); ++v) a = Simd::max(a, load(row, v));
  float lane[kLanes];
  Simd::store(lane, Simd::max(Simd::max(a, b), Simd::max(c, d)));
  float m = lane[0];
  for (int i = 1; i < kLanes; ++i) m = lane[i] > m ? lane[i] : m;
  if (m != -kInf || row.words != nullptr) return m;
  for (int64_t i = 0; i < row.size; ++i) {
    if (value(row.x, i) != -kInf) return value(row.x, i);
  }
  return m;
}

// With d = scale * (x - m) over a run of logits: sums of e^d, d e^d and d^2 e^d.
struct Sums {
  float s, t, q;
};

template <bool kMoments, typename T>
Sums sums(const Slice<T>& row, float m, float scale) {
  const F shift = Simd::set(m), factor = Simd::set(scale), zero = Simd::set(0.0f);
  F s = zero, t = zero, q = zero;
  const int64_t end = row.vectors();
  for (int64_t v = 0; v < end;) {
    F s_run = zero, t_run = zero, q_run = zero;
    for (const int64_t stop = std::min(v + kRun, end); v < stop; ++v) {
      // the next chunk arrives while this one is being summed
      __builtin_prefetch(row.x + v * kLanes + kChunk);
      const F d = clamp(Simd::mul(factor, Simd::sub(load(row, v), shift)));
      const F e = exp_clamped(d);
      s_run = Simd::add(s_run, e);
      if constexpr (kMoments) {
        const F de = Simd::mul(d, e);
        t_run = Simd::add(t_run, de);
        q_run = Simd::fma(d, de, q_run);
      }
    }
    s = Simd::add(s, s_run);
    t = Simd::add(t, t_run);
    q = Simd::add(q, q_run);
  }
  return {sum(s), sum(t), sum(q)};
}

// Weights e^(scale (x - m)) of a chunk; exactly 0 for -inf and for what is forbidden.
template <typename T>
void weights(const Slice<T>& row, float m, float scale, float* out) {
  for (int64_t v = 0; v < row.vectors(); ++v) {
    const F d = Simd::mul(Simd::set(scale), Simd::sub(load(row, v), Simd::set(m)));
    const uint32_t some = Simd::at_least(d, Simd::set(kFloor));
    Simd::store(out + v * kLanes, Simd::pick(some, exp_clamped(clamp(d)), Simd::set(0.0f)));
  }
}

// The token at which the running sum of a chunk's weights passes `fraction` of their total.
template <typename T>
int64_t draw(const Slice<T>& row, float m, float scale, double fraction) {
  float w[kChunk];
  weights(row, m, scale, w);
  const int64_t vectors = row.vectors();
  float group[kChunk / kLanes];
  double total = 0.0;
  for (int64_t v = 0; v < vectors; ++v) total += group[v] = sum(Simd::load(w + v * kLanes));
  double target = fraction * total;
  int64_t v = 0;
  while (v + 1 < vectors && target >= group[v]) target -= group[v++];
  int64_t last = -1;
  for (int64_t i = v * kLanes; i < vectors * kLanes; ++i) {
    if (w[i] == 0.0f) continue;
    last = i;
    if (target < w[i]) return i;
    target -= w[i];
  }
  // rounding carried the target past the end
  for (int64_t i = vectors * kLanes - 1; last < 0; --i) last = w[i] > 0.0f ? i : -1;
  return last;
}

}  // namespace
