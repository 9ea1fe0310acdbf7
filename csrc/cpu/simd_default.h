// F16 and D8 as arrays, for any machine: the compiler vectorises what it can (on aarch64 nearly all of it).  Without
// FMA in hardware, fma is a library call: the same bits, but slow.  The same text in another file for each level; see
// simd.h.

template <class T, int Lanes>
struct Array {
  T v[Lanes];
  static constexpr int lanes = Lanes;
};
using F16 = Array<float, 16>;
using D8 = Array<double, 8>;

#define MT2O_EACH(result, expression)                     \
  Array<T, L> result;                                     \
  for (int i = 0; i < L; ++i) result.v[i] = (expression); \
  return result

inline F16 set1(float x) {
  F16 all;
  for (int i = 0; i < 16; ++i) all.v[i] = x;
  return all;
}
inline D8 set1(double x) {
  D8 all;
  for (int i = 0; i < 8; ++i) all.v[i] = x;
  return all;
}
template <class T>
inline F16 load(const T* p) {
  F16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = widened(p[i]);
  return r;
}
inline D8 load(const double* p) {
  D8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = p[i];
  return r;
}
template <class S, class T, int L>
inline void store(S* p, Array<T, L> x) {
  for (int i = 0; i < L; ++i) p[i] = Rounded<S>::of(x.v[i]);
}

template <class T, int L>
inline Array<T, L> operator+(Array<T, L> a, Array<T, L> b) {
  MT2O_EACH(r, a.v[i] + b.v[i]);
}
template <class T, int L>
inline Array<T, L> operator-(Array<T, L> a, Array<T, L> b) {
  MT2O_EACH(r, a.v[i] - b.v[i]);
}
template <class T, int L>
inline Array<T, L> operator*(Array<T, L> a, Array<T, L> b) {
  MT2O_EACH(r, a.v[i] * b.v[i]);
}
template <class T, int L>
inline Array<T, L> operator/(Array<T, L> a, Array<T, L> b) {
  MT2O_EACH(r, a.v[i] / b.v[i]);
}
template <class T, int L>
inline Array<T, L> fma(Array<T, L> a, Array<T, L> b, Array<T, L> c) {
  MT2O_EACH(r, mt2o::fma(a.v[i], b.v[i], c.v[i]));
}
template <class T, int L>
inline Array<T, L> sqrt(Array<T, L> a) {
  MT2O_EACH(r, mt2o::sqrt(a.v[i]));
}
template <class T, int L>
inline Array<T, L> max(Array<T, L> a, Array<T, L> b) {
  MT2O_EACH(r, mt2o::max(a.v[i], b.v[i]));
}
template <class T, int L>
inline Array<T, L> sign(Array<T, L> a) {
  MT2O_EACH(r, mt2o::sign(a.v[i]));
}
// a in the lanes whose bit is set (the first lane's is the lowest), b in the others.
template <class T, int L>
inline Array<T, L> chosen(uint32_t bits, Array<T, L> a, Array<T, L> b) {
  MT2O_EACH(r, bits >> i & 1 ? a.v[i] : b.v[i]);
}
#undef MT2O_EACH

inline D8 lower_half(F16 x) {
  D8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = x.v[i];
  return r;
}
inline D8 upper_half(F16 x) {
  D8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = x.v[i + 8];
  return r;
}
template <class T, int L>
inline double total(Array<T, L> x) {
  for (int half = L / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) x.v[i] = x.v[i] + x.v[i + half];
  return x.v[0];
}

// A number in one part: see simd_avx2.h.
constexpr int num_parts = 1;
constexpr int gram_a = 2, gram_b = 2;
