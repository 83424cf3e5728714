// Sixteen float lanes in portable C++: the definition that the AVX versions match bit by bit.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "spark/narrow.h"

namespace {

struct Simd {
  struct F {
    float lane[16];
  };
  template <typename Op>
  static F each(Op op) {
    F out;
    for (int i = 0; i < 16; ++i) out.lane[i] = op(i);
    return out;
  }
  static F set(float v) {
    return each([&](int) { return v; });
  }
  template <typename T>
  static F load(const T* p) {
    return each([&](int i) { return widened(p[i]); });
  }
  static void store(float* p, const F& v) {
    for (int i = 0; i < 16; ++i) p[i] = v.lane[i];
  }
  struct I {
    int32_t lane[16];
  };
  // rounded towards zero; the values must fit
  static I whole(const F& v) {
    I out;
    for (int i = 0; i < 16; ++i) out.lane[i] = static_cast<int32_t>(v.lane[i]);
    return out;
  }
  static F real(const I& v) {
    return each([&](int i) { return static_cast<float>(v.lane[i]); });
  }
  static I add(I a, const I& b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static void store(int32_t* p, const I& v) {
    for (int i = 0; i < 16; ++i) p[i] = v.lane[i];
  }
  static F add(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F sub(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static F mul(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  // a * b + c, rounded once
  static F fma(const F& a, const F& b, const F& c) {
    return each([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
  }
  // b where either is NaN
  static F max(const F& a, const F& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // lane i + lane i + 8, of these i + i + 4, and so on
  static float sum(F v) {
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) v.lane[i] += v.lane[i + width];
    }
    return v.lane[0];
  }
  // bit i = lane i of v is >= that of bound
  static uint32_t at_least(const F& v, const F& bound) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; ++i) bits |= uint32_t(v.lane[i] >= bound.lane[i]) << i;
    return bits;
  }
  static F pick(uint32_t bits, const F& yes, const F& no) {
    return each([&](int i) { return (bits >> i) & 1 ? yes.lane[i] : no.lane[i]; });
  }
  // v * 2^n, where n stands in the low bits of t; no overflow or underflow is handled
  static F times_power(const F& v, const F& t) {
    return each([&](int i) {
      const uint32_t shift = std::bit_cast<uint32_t>(t.lane[i]) << 23;
      return std::bit_cast<float>(std::bit_cast<uint32_t>(v.lane[i]) + shift);
    });
  }
};

}  // namespace
