// Products of many rows, a block of pairs in registers at a time.  Included by kernels_impl.h.
//
// A sum has sixteen lanes (eight of double), which the order of its columns depends on; neither the block that a pair
// is computed in nor the number of registers that a sum takes (a part of it in each) changes a bit.

template <class S>
struct Rows {
  const S* values;
  int64_t row;  // distance between rows
  const S* operator[](int64_t i) const { return values + i * row; }
  Rows from(int64_t i) const { return {values + i * row, row}; }
};

template <class N>
using Part = decltype(part<0>(N()));
template <class S>
using Sum = Part<Number<S>>[num_parts];
template <class S, int i = 0>
inline Part<Number<S>> nothing() {
  return part<i>(set1(S(0)));
}

// One part of the sums of A rows with B others.
template <int k, int A, int B, class S>
inline void add_block(Rows<S> x, Rows<S> y, int64_t n, Sum<S> (&out)[A][B]) {
  using N = Number<S>;
  Part<N> sum[A][B];
#pragma GCC unroll 6
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < B; ++j) sum[i][j] = nothing<S>();
  for_groups<N>(n, [&](int64_t p, auto left) {
    Part<N> b[B];
#pragma GCC unroll 6
    for (int j = 0; j < B; ++j) b[j] = part<k>(load(y[j] + p, left));
#pragma GCC unroll 6
    for (int i = 0; i < A; ++i) {
      const Part<N> a = part<k>(load(x[i] + p, left));
#pragma GCC unroll 6
      for (int j = 0; j < B; ++j) sum[i][j] = fma(a, b[j], sum[i][j]);
    }
  });
#pragma GCC unroll 6
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < B; ++j) out[i][j][k] = sum[i][j];
}
// One part of the sums of all pairs of A rows.
template <int k, int A, class S>
inline void add_triangle(Rows<S> x, int64_t n, Sum<S> (&out)[A * (A + 1) / 2]) {
  using N = Number<S>;
  Part<N> sum[A * (A + 1) / 2];
#pragma GCC unroll 21
  for (int q = 0; q < A * (A + 1) / 2; ++q) sum[q] = nothing<S>();
  for_groups<N>(n, [&](int64_t p, auto left) {
    Part<N> a[A];
#pragma GCC unroll 6
    for (int i = 0; i < A; ++i) {
      a[i] = part<k>(load(x[i] + p, left));
#pragma GCC unroll 6
      for (int j = 0; j <= i; ++j) sum[gram_pair(i, j)] = fma(a[i], a[j], sum[gram_pair(i, j)]);
    }
  });
#pragma GCC unroll 21
  for (int q = 0; q < A * (A + 1) / 2; ++q) out[q][k] = sum[q];
}

// out[i][j] of A rows and B others.
template <int A, int B, class S>
__attribute__((noinline)) void gram_block(Rows<S> x, Rows<S> y, int64_t n, double* out) {
  Sum<S> sum[A][B];
  add_block<0>(x, y, n, sum);
  if constexpr (num_parts == 2) add_block<1>(x, y, n, sum);
  for (int i = 0; i < A; ++i)
    for (int j = 0; j < B; ++j) out[i * B + j] = total(whole(sum[i][j]));
}
template <int A, class S>
__attribute__((noinline)) void gram_triangle(Rows<S> x, int64_t n, double* out) {
  Sum<S> sum[A * (A + 1) / 2];
  add_triangle<0, A>(x, n, sum);
  if constexpr (num_parts == 2) add_triangle<1, A>(x, n, sum);
  for (int q = 0; q < A * (A + 1) / 2; ++q) out[q] = total(whole(sum[q]));
}

// f(Count<n>{}) for n in 1 .. Max.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <int Max, class F>
inline void with_count(int64_t n, F f) {
  if constexpr (Max > 1)
    if (n < Max) return with_count<Max - 1>(n, f);
  f(Count<Max>{});
}

// add(i, j, sum) for A rows and any number of others.
template <int A, class S, class Add>
void gram_panel(Rows<S> x, Rows<S> y, int64_t others, int64_t n, Add add) {
  for (int64_t at = 0; at < others;) {
    const int64_t left = others - at;  // no narrow block at the end: four are two and two, not three and one
    const int64_t width = left > gram_b && left < 2 * gram_b ? (left + 1) / 2 : least(left, gram_b);
    with_count<gram_b>(width, [&](auto count) {
      constexpr int B = decltype(count)::value;
      double sums[A * B];
      gram_block<A, B>(x, y.from(at), n, sums);
      for (int i = 0; i < A; ++i)
        for (int j = 0; j < B; ++j) add(i, at + j, sums[i * B + j]);
    });
    at += width;
  }
}
// add(i, j, sum) for any number of rows and of others.
template <class S, class Add>
void gram_rectangle(Rows<S> x, int64_t rows, Rows<S> y, int64_t others, int64_t n, Add add) {
  int64_t i = 0;
  for (; i + gram_a <= rows; i += gram_a)
    gram_panel<gram_a>(x.from(i), y, others, n, [&](int64_t a, int64_t b, double sum) { add(i + a, b, sum); });
  if (i == rows) return;
  int64_t j = 0;  // the rows that are left: with panels of others
  for (; j + gram_a <= others; j += gram_a)
    gram_panel<gram_a>(y.from(j), x.from(i), rows - i, n,
                       [&](int64_t b, int64_t a, double sum) { add(i + a, j + b, sum); });
  if (j < others)
    with_count<gram_a - 1>(rows - i, [&](auto count) {
      gram_panel<decltype(count)::value>(x.from(i), y.from(j), others - j, n,
                                         [&](int64_t a, int64_t b, double sum) { add(i + a, j + b, sum); });
    });
}
