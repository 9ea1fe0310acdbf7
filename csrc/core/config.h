// How a formula is declared, and the arithmetic it is written in.
//
// Every formula of the package is a template over its number type N, written once, here in core/:
//   N = float or double    on the GPU, in the emulator and in the C++ tests,
//   N = F16 or D8          sixteen floats or eight doubles on the CPU (cpu/simd_*.h).
// Only + - * / sqrt fma max and sign are used, contraction is off, and fma is written out where it is wanted: so every
// one of them gives the same bits.  No torch, no Python, no CUDA header and no standard library but <cstdint>.
#pragma once
#include <cstdint>

// Functions of internal linkage: a file compiled for AVX-512 must not give its copy of an inline function to the
// others.
#if defined(__CUDACC__)
#define MT2O_HD static __host__ __device__ __forceinline__
#define MT2O_HD_MEMBER __host__ __device__ __forceinline__
#define MT2O_HD_CALL static __host__ __device__ __noinline__  // called in so many places that copies would be too much
#else
#define MT2O_HD static inline __attribute__((always_inline))
#define MT2O_HD_MEMBER inline __attribute__((always_inline))
#define MT2O_HD_CALL MT2O_HD
#endif

namespace mt2o {

MT2O_HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MT2O_HD double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
MT2O_HD float sqrt(float a) { return __builtin_sqrtf(a); }
MT2O_HD double sqrt(double a) { return __builtin_sqrt(a); }
MT2O_HD float max(float a, float b) { return a > b ? a : b; }
MT2O_HD double max(double a, double b) { return a > b ? a : b; }
MT2O_HD float sign(float a) { return a > 0.f ? 1.f : a < 0.f ? -1.f : a; }  // of zero and of NaN: itself
MT2O_HD double sign(double a) { return a > 0. ? 1. : a < 0. ? -1. : a; }
MT2O_HD constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace mt2o
