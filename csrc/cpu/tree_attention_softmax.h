// The running softmax of tree_attention over one tile of scores, as tree_attention_tiles.h lays
// them out: a row at a time, or a vector of rows in the lanes.
#pragma once

#include "vec.h"

namespace {

// cap * tanh(x / cap)
inline Vec soft_cap(Vec x, float cap) {
  Vec y = x / cap;
  Vec e = exp(y < 0.0f ? 2.0f * y : -2.0f * y);
  Vec tanh = (1.0f - e) / (1.0f + e);
  return (y < 0.0f ? -tanh : tanh) * cap;
}

inline VecInt lane_index() {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return VecInt{I...};
  }(std::make_integer_sequence<int, kLanes>{});
}

// Scores are factor * x, where x is a product of query and key, or the soft-capped score itself.
inline float score_factor(float scale, float softcap) { return softcap > 0 ? 1.0f : scale; }

// Turn a row's products into weights relative to its largest x so far, and update its running
// maximum and sum. The row sees the keys in (low, high].
template <typename Product>
void softmax_row(float* scores, int panels, int low, int high, float scale, float softcap,
                 float& row_max, float& row_sum, float& decay) {
  const bool masked = high < panels * kLanes - 1 || low >= 0;
  Vec top = splat(row_max);
  for (int p = 0; p < panels; ++p) {
    Vec x = load(scores + p * kLanes);
    if (softcap > 0) x = soft_cap(x * scale, softcap);
    if (masked) {
      VecInt key = lane_index() + p * kLanes;
      x = (key <= high) & (key > low) ? x : splat(-kInfinity);
    }
    if (masked || softcap > 0) store(scores + p * kLanes, x);
    top = max(top, x);
  }
  const float largest = reduce_max(top);
  // nothing visible so far: any finite reference keeps the weights at 0
  const float reference = largest == -kInfinity ? 0.0f : largest;
  const float factor = score_factor(scale, softcap) * kLog2E;
  Vec total{};
  for (int p = 0; p < panels; ++p) {
    // subtracted first, which is exact where it matters
    Vec weight = exp2((load(scores + p * kLanes) - reference) * factor);
    total += Product::store_weights(scores, p, weight);
  }
  decay = exp2(splat((row_max - reference) * factor))[0];
  row_max = largest;
  row_sum = row_sum * decay + reduce_sum(total);
}

// The same for kLanes rows in the lanes of scores[key * stride]; row i sees the keys in
// (low[i], high[i]], all of them unless `masked`.
template <typename Product>
void softmax_lanes(float* scores, int64_t stride, int keys, bool masked, VecInt low, VecInt high,
                   float scale, float softcap, float* row_max, float* row_sum, float* decay) {
  const Vec before = load(row_max);
  Vec top = before;
  for (int k = 0; k < keys; ++k) {
    Vec x = load(scores + k * stride);
    if (softcap > 0) x = soft_cap(x * scale, softcap);
    if (masked) x = (k <= high) & (k > low) ? x : splat(-kInfinity);
    if (masked || softcap > 0) store(scores + k * stride, x);
    top = max(top, x);
  }
  const Vec reference = top == -kInfinity ? Vec{} : top;
  const float factor = score_factor(scale, softcap) * kLog2E;
  auto weight = [&](int k) { return exp2((load(scores + k * stride) - reference) * factor); };
  Vec total{};
  int k = 0;
  for (; k + 2 <= keys; k += 2) {
    const Vec first = weight(k), second = weight(k + 1);
    total += Product::store_pair(scores + Product::row_of(k) * stride, stride, first, second);
  }
  if (k < keys)
    total += Product::store_pair(scores + Product::row_of(k) * stride, stride, weight(k), Vec{});
  const Vec factor_before = exp2((before - reference) * factor);
  store(decay, factor_before);
  store(row_max, top);
  store(row_sum, load(row_sum) * factor_before + total);
}

}  // namespace
