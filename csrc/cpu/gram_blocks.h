// Products of many rows, a block of pairs in registers at a time.  Included by kernels_impl.h.
//
// A sum has sixteen lanes (eight of double), which the order of its columns depends on; neither the block that a pair
// is computed in nor the number of registers that a sum takes (a part of it in each) changes a bit.

// Rows, each where it lies; of a diagonal, a row that is not there is nullptr.
template <class S>
struct Rows {
  const S* const* of;
  const S* operator[](int64_t i) const { return of[i]; }
  Rows from(int64_t i) const { return {of + i}; }
};

// What is taken of each number: all of it, or one part.
template <int k>
struct Only {
  template <class N>
  auto operator()(N x) const {
    return part<k>(x);
  }
};
struct Whole {
  template <class N>
  N operator()(N x) const {
    return x;
  }
};

// Products of A rows with B others, of all their columns.
template <int A, int B, class S, class V, class Take>
inline void add_block(Rows<S> x, Rows<S> y, int64_t n, V (&out)[A][B], Take take) {
  V sum[A][B];
#pragma GCC unroll 6
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < B; ++j) sum[i][j] = take(set1(S(0)));
  for_groups<Number<S>>(n, [&](int64_t p, auto left) {
    V b[B];
#pragma GCC unroll 6
    for (int j = 0; j < B; ++j) b[j] = take(load(y[j] + p, left));
#pragma GCC unroll 6
    for (int i = 0; i < A; ++i) {
      const V a = take(load(x[i] + p, left));
#pragma GCC unroll 6
      for (int j = 0; j < B; ++j) sum[i][j] = fma(a, b[j], sum[i][j]);
    }
  });
#pragma GCC unroll 6
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < B; ++j) out[i][j] = sum[i][j];
}
// Products of all pairs of A rows.
template <int A, class S, class V, class Take>
inline void add_triangle(Rows<S> x, int64_t n, V (&out)[A][A], Take take) {
  V sum[A * (A + 1) / 2];
#pragma GCC unroll 21
  for (V& one : sum) one = take(set1(S(0)));
  for_groups<Number<S>>(n, [&](int64_t p, auto left) {
    V a[A];
#pragma GCC unroll 6
    for (int i = 0; i < A; ++i) {
      a[i] = take(load(x[i] + p, left));
#pragma GCC unroll 6
      for (int j = 0; j <= i; ++j) sum[gram_pair(i, j)] = fma(a[i], a[j], sum[gram_pair(i, j)]);
    }
  });
#pragma GCC unroll 6
  for (int i = 0; i < A; ++i)
#pragma GCC unroll 6
    for (int j = 0; j <= i; ++j) out[i][j] = sum[gram_pair(i, j)];
}

// True if so many sums have to be taken a part at a time, to stay in the registers.
constexpr bool in_parts(int sums) { return sums * num_parts > gram_a * gram_b; }

// out[i][j] of A rows and B others.
template <int A, int B, class S>
__attribute__((noinline)) void gram_block(Rows<S> x, Rows<S> y, int64_t n, double (&out)[A][B]) {
  using N = Number<S>;
  if constexpr (in_parts(A * B)) {
    decltype(part<0>(N())) lower[A][B], upper[A][B];
    add_block(x, y, n, lower, Only<0>());
    add_block(x, y, n, upper, Only<1>());
    for (int i = 0; i < A; ++i)
      for (int j = 0; j < B; ++j) out[i][j] = total(joined(lower[i][j], upper[i][j]));
  } else {
    N sum[A][B];
    add_block(x, y, n, sum, Whole());
    for (int i = 0; i < A; ++i)
      for (int j = 0; j < B; ++j) out[i][j] = total(sum[i][j]);
  }
}
// out[i][j], j <= i, of A rows.
template <int A, class S>
__attribute__((noinline)) void gram_triangle(Rows<S> x, int64_t n, double (*out)[gram_a]) {
  using N = Number<S>;
  if constexpr (in_parts(A * (A + 1) / 2)) {
    decltype(part<0>(N())) lower[A][A], upper[A][A];
    add_triangle(x, n, lower, Only<0>());
    add_triangle(x, n, upper, Only<1>());
    for (int i = 0; i < A; ++i)
      for (int j = 0; j <= i; ++j) out[i][j] = total(joined(lower[i][j], upper[i][j]));
  } else {
    N sum[A][A];
    add_triangle(x, n, sum, Whole());
    for (int i = 0; i < A; ++i)
      for (int j = 0; j <= i; ++j) out[i][j] = total(sum[i][j]);
  }
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
    const int64_t width = least(others - at, gram_b);
    with_count<gram_b>(width, [&](auto count) {
      constexpr int B = decltype(count)::value;
      double sums[A][B];
      gram_block<A, B>(x, y.from(at), n, sums);
      for (int i = 0; i < A; ++i)
        for (int j = 0; j < B; ++j) add(i, at + j, sums[i][j]);
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
