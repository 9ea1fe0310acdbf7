// Storage types of sixteen bits and their conversions, rounding to nearest even, with the bits that processors give.
// On a GPU they are single instructions, which differ in one thing: they make the same NaN of every NaN.
#pragma once
#include "config.h"

namespace mt2o {

enum class Type : int32_t { float32, float64, bfloat16, float16 };

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// A storage type is computed in its scalar: what has sixteen bits, in float.
template <class S>
struct ScalarOf {
  using type = float;
};
template <>
struct ScalarOf<double> {
  using type = double;
};
template <class S>
using Scalar = typename ScalarOf<S>::type;

// f(Of<S>{}) with the storage type S behind a Type.
template <class S>
struct Of {
  using type = S;
};
template <class F>
static inline void with_type(Type type, F f) {
  switch (type) {
    case Type::float32: return f(Of<float>{});
    case Type::float64: return f(Of<double>{});
    case Type::bfloat16: return f(Of<bfloat16>{});
    case Type::float16: return f(Of<float16>{});
  }
}

MT2O_HD uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
MT2O_HD float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

MT2O_HD float widened(float x) { return x; }
MT2O_HD double widened(double x) { return x; }
MT2O_HD float widened(bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
MT2O_HD float widened(float16 x) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, mantissa = x.bits & 0x3ff;
  if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exactly
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
#endif
}

// Whether a number is neither infinite nor NaN.
MT2O_HD bool is_finite(float x) { return (bits_of(x) & 0x7f800000) != 0x7f800000; }
MT2O_HD bool is_finite(double x) { return x - x == 0.; }
MT2O_HD bool is_finite(bfloat16 x) { return (x.bits & 0x7f80) != 0x7f80; }
MT2O_HD bool is_finite(float16 x) { return (x.bits & 0x7c00) != 0x7c00; }

// The same of 32 bits of memory at once.  Exponents of nothing but
// ones carry into the bit of the sign when `one` is added; finite numbers stay below it.
template <class S>
struct FiniteBits;
template <>
struct FiniteBits<float> {
  static constexpr uint32_t signs = 0x80000000, one = 0x00800000;
};
template <>
struct FiniteBits<double> {
  static constexpr uint32_t signs = 0x80000000;  // a double is looked at as a whole
};
template <>
struct FiniteBits<bfloat16> {
  static constexpr uint32_t signs = 0x80008000, one = 0x00800080;
};
template <>
struct FiniteBits<float16> {
  static constexpr uint32_t signs = 0x80008000, one = 0x04000400;
};
// Has a bit of `signs` where a number in the word is infinite or NaN.
template <class S>
MT2O_HD uint32_t marked_nonfinite(uint32_t word) {
  return (word & ~FiniteBits<S>::signs) + FiniteBits<S>::one;
}

template <class T>
struct Rounded;
template <>
struct Rounded<float> {
  MT2O_HD float of(float x) { return x; }
};
template <>
struct Rounded<double> {
  MT2O_HD double of(double x) { return x; }
};
template <>
struct Rounded<bfloat16> {
  MT2O_HD bfloat16 of(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    bfloat16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
    return rounded;
#else
    const uint32_t bits = bits_of(x);
    if (x != x) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
  }
};
template <>
struct Rounded<float16> {
  MT2O_HD float16 of(float x) {
#if defined(__CUDA_ARCH__)
    float16 rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
    return rounded;
#else
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00 | (magnitude >> 13 & 0x3ff))};
    if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
    if (magnitude < 0x38800000) {                                   // below 2^-14: the float adder rounds to 2^-24
      const float rounded = float_of(magnitude) + 0.5f;
      return {uint16_t(sign | (bits_of(rounded) - 0x3f000000))};
    }
    return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13))};
#endif
  }
};

}  // namespace mt2o
