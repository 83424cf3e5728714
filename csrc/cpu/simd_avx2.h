// Sixteen lanes in two AVX2 registers; the meaning of each function is in simd_plain.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "spark/narrow.h"

namespace {

struct Simd {
  struct F {
    __m256 lo, hi;
  };
  static F set(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static __m256 widen(const Bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static __m256 widen(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <typename T>
  static F load(const T* p) {
    return {widen(p), widen(p + 8)};
  }
  static void store(float* p, F v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
  }
  struct I {
    __m256i lo, hi;
  };
  static I whole(F v) { return {_mm256_cvttps_epi32(v.lo), _mm256_cvttps_epi32(v.hi)}; }
  static F real(I v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
  static I add(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
  static void store(int32_t* p, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), v.hi);
  }
  static F add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  // halves added: the order of additions is part of the result
  static float sum(__m256 v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float sum(F v) { return sum(_mm256_add_ps(v.lo, v.hi)); }
  static uint32_t at_least(F v, F bound) {
    const int lo = _mm256_movemask_ps(_mm256_cmp_ps(v.lo, bound.lo, _CMP_GE_OQ));
    const int hi = _mm256_movemask_ps(_mm256_cmp_ps(v.hi, bound.hi, _CMP_GE_OQ));
    return static_cast<uint32_t>(lo | (hi << 8));
  }
  static __m256 lanes(uint32_t bits) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), each);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, each));
  }
  static F pick(uint32_t bits, F yes, F no) {
    return {_mm256_blendv_ps(no.lo, yes.lo, lanes(bits)),
            _mm256_blendv_ps(no.hi, yes.hi, lanes(bits >> 8))};
  }
  static __m256 times_power(__m256 v, __m256 t) {
    const __m256i shift = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), shift));
  }
  static F times_power(F v, F t) { return {times_power(v.lo, t.lo), times_power(v.hi, t.hi)}; }
};

}  // namespace
