// F16 and D8 as one AVX-512 register each.  The same text in another file for each level; see simd.h.

struct F16 {
  __m512 v;
  static constexpr int lanes = 16;
};
struct D8 {
  __m512d v;
  static constexpr int lanes = 8;
};

inline F16 set1(float x) { return {_mm512_set1_ps(x)}; }
inline D8 set1(double x) { return {_mm512_set1_pd(x)}; }

inline F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline __mmask16 first_lanes(int64_t n) { return __mmask16((1u << n) - 1); }
inline F16 load(const float* p, int64_t left) { return {_mm512_maskz_loadu_ps(first_lanes(left), p)}; }
inline D8 load(const double* p) { return {_mm512_loadu_pd(p)}; }
inline F16 load(const bfloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline F16 load(const float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

inline void store(float* p, F16 x) { _mm512_storeu_ps(p, x.v); }
inline void store(float* p, F16 x, int64_t left) { _mm512_mask_storeu_ps(p, first_lanes(left), x.v); }
inline void store(double* p, D8 x) { _mm512_storeu_pd(p, x.v); }
inline void store(bfloat16* p, F16 x) {
  const __m512i bits = _mm512_castps_si512(x.v), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet)));
}
inline void store(float16* p, F16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

inline F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F16 sqrt(F16 a) { return {_mm512_sqrt_ps(a.v)}; }
inline F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }

inline D8 operator+(D8 a, D8 b) { return {_mm512_add_pd(a.v, b.v)}; }
inline D8 operator-(D8 a, D8 b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline D8 operator*(D8 a, D8 b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline D8 operator/(D8 a, D8 b) { return {_mm512_div_pd(a.v, b.v)}; }
inline D8 fma(D8 a, D8 b, D8 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline D8 sqrt(D8 a) { return {_mm512_sqrt_pd(a.v)}; }
inline D8 max(D8 a, D8 b) { return {_mm512_max_pd(a.v, b.v)}; }

// a in the lanes whose bit is set (the first lane's is the lowest), b in the others.
inline F16 chosen(uint32_t bits, F16 a, F16 b) { return {_mm512_mask_blend_ps(__mmask16(bits), b.v, a.v)}; }
inline D8 chosen(uint32_t bits, D8 a, D8 b) { return {_mm512_mask_blend_pd(__mmask8(bits), b.v, a.v)}; }

// One with the sign of x; zero and NaN as they are.
inline F16 sign(F16 a) {
  const __m512 one = _mm512_or_ps(_mm512_and_ps(a.v, _mm512_set1_ps(-0.f)), _mm512_set1_ps(1.f));
  return {_mm512_mask_mov_ps(a.v, _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_OQ), one)};
}
inline D8 sign(D8 a) {
  const __m512d one = _mm512_or_pd(_mm512_and_pd(a.v, _mm512_set1_pd(-0.)), _mm512_set1_pd(1.));
  return {_mm512_mask_mov_pd(a.v, _mm512_cmp_pd_mask(a.v, _mm512_setzero_pd(), _CMP_NEQ_OQ), one)};
}

inline __m256 upper(__m512 x) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)); }
inline D8 lower_half(F16 x) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(x.v))}; }
inline D8 upper_half(F16 x) { return {_mm512_cvtps_pd(upper(x.v))}; }

inline double total(F16 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), upper(x.v));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline double total(D8 x) {
  const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(x.v), _mm512_extractf64x4_pd(x.v, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// A number is one register: see simd_avx2.h.
constexpr int num_parts = 1;
constexpr int gram_a = 4, gram_b = 4;  // pairs of rows that fit the 32 registers
