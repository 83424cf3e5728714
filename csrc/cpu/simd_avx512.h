// Sixteen lanes in one AVX-512 register; the meaning of each function is in simd_plain.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "spark/narrow.h"

namespace {

struct Simd {
  using F = __m512;
  static F set(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load(const Bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  using I = __m512i;
  static I whole(F v) { return _mm512_cvttps_epi32(v); }
  static F real(I v) { return _mm512_cvtepi32_ps(v); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  // halves added: the order of additions is part of the result
  static float sum(__m256 v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float sum(F v) {
    return sum(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
  }
  static uint32_t at_least(F v, F bound) { return _mm512_cmp_ps_mask(v, bound, _CMP_GE_OQ); }
  static F pick(uint32_t bits, F yes, F no) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), no, yes);
  }
  static F times_power(F v, F t) {
    const __m512i shift = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), shift));
  }
};

}  // namespace
