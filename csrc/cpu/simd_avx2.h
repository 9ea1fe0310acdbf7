// F16 and D8 as two AVX registers each (AVX2, FMA, F16C).  The same text in another file for each level; see simd.h.

struct F16 {
  __m256 lo, hi;
  static constexpr int lanes = 16;
};
struct D8 {
  __m256d lo, hi;
  static constexpr int lanes = 8;
};

inline F16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline D8 set1(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }

inline __m128i load_eight_halves(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256 widened_bfloat16(const bfloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_eight_halves(p)), 16));
}
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256i first_lanes(int64_t n) {  // of eight: all ones where there is an element
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F16 load(const float* p, int64_t left) {
  return {_mm256_maskload_ps(p, first_lanes(left)), _mm256_maskload_ps(p + 8, first_lanes(left - 8))};
}
inline D8 load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
inline F16 load(const bfloat16* p) { return {widened_bfloat16(p), widened_bfloat16(p + 8)}; }
inline F16 load(const float16* p) {
  return {_mm256_cvtph_ps(load_eight_halves(p)), _mm256_cvtph_ps(load_eight_halves(p + 8))};
}

inline __m256i rounded_bfloat16(__m256 x) {  // in the low halves of eight 32-bit lanes
  const __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}
inline void store(float* p, F16 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline void store(float* p, F16 x, int64_t left) {
  _mm256_maskstore_ps(p, first_lanes(left), x.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(left - 8), x.hi);
}
inline void store(double* p, D8 x) {
  _mm256_storeu_pd(p, x.lo);
  _mm256_storeu_pd(p + 4, x.hi);
}
inline void store(bfloat16* p, F16 x) {
  const __m256i packed = _mm256_packus_epi32(rounded_bfloat16(x.lo), rounded_bfloat16(x.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline void store(float16* p, F16 x) {
  __m128i* out = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(out, _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(out + 1, _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
}

inline F16 operator+(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F16 operator-(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F16 operator*(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F16 operator/(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F16 fma(F16 a, F16 b, F16 c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline F16 sqrt(F16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
inline F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }

inline D8 operator+(D8 a, D8 b) { return {_mm256_add_pd(a.lo, b.lo), _mm256_add_pd(a.hi, b.hi)}; }
inline D8 operator-(D8 a, D8 b) { return {_mm256_sub_pd(a.lo, b.lo), _mm256_sub_pd(a.hi, b.hi)}; }
inline D8 operator*(D8 a, D8 b) { return {_mm256_mul_pd(a.lo, b.lo), _mm256_mul_pd(a.hi, b.hi)}; }
inline D8 operator/(D8 a, D8 b) { return {_mm256_div_pd(a.lo, b.lo), _mm256_div_pd(a.hi, b.hi)}; }
inline D8 fma(D8 a, D8 b, D8 c) { return {_mm256_fmadd_pd(a.lo, b.lo, c.lo), _mm256_fmadd_pd(a.hi, b.hi, c.hi)}; }
inline D8 sqrt(D8 a) { return {_mm256_sqrt_pd(a.lo), _mm256_sqrt_pd(a.hi)}; }
inline D8 max(D8 a, D8 b) { return {_mm256_max_pd(a.lo, b.lo), _mm256_max_pd(a.hi, b.hi)}; }

// a in the lanes whose bit is set (the first lane's is the lowest), b in the others.
inline __m256i lanes_of(uint32_t bits, __m256i each) { return _mm256_and_si256(_mm256_set1_epi32(int(bits)), each); }
inline __m256 chosen(uint32_t bits, __m256 a, __m256 b) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(lanes_of(bits, each), each)));
}
inline __m256d chosen(uint32_t bits, __m256d a, __m256d b) {
  const __m256i each = _mm256_setr_epi32(1, 1, 2, 2, 4, 4, 8, 8);
  return _mm256_blendv_pd(b, a, _mm256_castsi256_pd(_mm256_cmpeq_epi32(lanes_of(bits, each), each)));
}
inline F16 chosen(uint32_t bits, F16 a, F16 b) { return {chosen(bits, a.lo, b.lo), chosen(bits >> 8, a.hi, b.hi)}; }
inline D8 chosen(uint32_t bits, D8 a, D8 b) { return {chosen(bits, a.lo, b.lo), chosen(bits >> 4, a.hi, b.hi)}; }

// One with the sign of x; zero and NaN as they are.
inline __m256 sign(__m256 x) {
  const __m256 one = _mm256_or_ps(_mm256_and_ps(x, _mm256_set1_ps(-0.f)), _mm256_set1_ps(1.f));
  return _mm256_blendv_ps(x, one, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_OQ));
}
inline __m256d sign(__m256d x) {
  const __m256d one = _mm256_or_pd(_mm256_and_pd(x, _mm256_set1_pd(-0.)), _mm256_set1_pd(1.));
  return _mm256_blendv_pd(x, one, _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_NEQ_OQ));
}
inline F16 sign(F16 a) { return {sign(a.lo), sign(a.hi)}; }
inline D8 sign(D8 a) { return {sign(a.lo), sign(a.hi)}; }

inline D8 widened_eight(__m256 x) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}
inline D8 lower_half(F16 x) { return widened_eight(x.lo); }
inline D8 upper_half(F16 x) { return widened_eight(x.hi); }

inline double total(F16 x) {
  const __m256 eight = _mm256_add_ps(x.lo, x.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline double total(D8 x) {
  const __m256d four = _mm256_add_pd(x.lo, x.hi);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

// The registers of a number: sums that do not depend on one another may be taken one register at a time.
struct F8 {
  __m256 v;
};
struct D4 {
  __m256d v;
};
constexpr int num_parts = 2;
template <int i>
inline F8 part(F16 x) {
  return {i ? x.hi : x.lo};
}
template <int i>
inline D4 part(D8 x) {
  return {i ? x.hi : x.lo};
}
inline F16 joined(F8 lo, F8 hi) { return {lo.v, hi.v}; }
inline D8 joined(D4 lo, D4 hi) { return {lo.v, hi.v}; }
inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline D4 fma(D4 a, D4 b, D4 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }

constexpr int gram_a = 4, gram_b = 3;  // pairs of rows whose sums fit the 16 registers, a part of each
