// Two-byte floats, and what they are as float; every value is exact.
#pragma once

#include <cstdint>
#include <cstring>

#include "spark/host_device.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace {

struct Bf16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

template <typename To, typename From>
SPARK_HOST_DEVICE inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

SPARK_HOST_DEVICE inline float widened(float x) { return x; }
SPARK_HOST_DEVICE inline float widened(Bf16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
SPARK_HOST_DEVICE inline float widened(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  // 2^112 moves the exponent to its place, that of denormals too
  const float size = bits_as<float>(rest) * 0x1p112f;
  const bool finite = (x.bits & 0x7c00) != 0x7c00;
  return bits_as<float>(sign | (finite ? bits_as<uint32_t>(size) : rest | 0x7f800000));
#endif
}

}  // namespace
