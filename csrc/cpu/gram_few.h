// Products of few rows, and diagonals: in double throughout, straight from the stream.  Included by kernels_impl.h.

template <class N>
struct WideSum;
template <>
struct WideSum<F16> {  // products of floats are exact in double
  D8 sum = set1(0.);
  void add(F16 a, F16 b) {
    sum = fma(lower_half(a), lower_half(b), sum);
    sum = fma(upper_half(a), upper_half(b), sum);
  }
  double value() const { return total(sum); }
};
template <>
struct WideSum<D8> {
  D8 sum = set1(0.);
  void add(D8 a, D8 b) { sum = fma(a, b, sum); }
  double value() const { return total(sum); }
};

// All pairs of R rows, each element loaded once.
template <int R, class G>
void gram_few_rows(Rows<G> rows, int64_t n, double* out) {
  using N = Number<G>;
  WideSum<N> sum[R * (R + 1) / 2];
  for_groups<N>(n, [&](int64_t p, auto left) {
    N x[R];
#pragma GCC unroll 3
    for (int i = 0; i < R; ++i) {
      x[i] = load(rows[i] + p, left);
#pragma GCC unroll 3
      for (int j = 0; j <= i; ++j) sum[gram_pair(i, j)].add(x[i], x[j]);
    }
  });
  for (int q = 0; q < R * (R + 1) / 2; ++q) out[q] += sum[q].value();
}
// One row with B others.
template <int B, class G>
void gram_few_others(const G* values, Rows<G> others, int64_t n, double* out) {
  using N = Number<G>;
  WideSum<N> sum[B];
  for_groups<N>(n, [&](int64_t p, auto left) {
    const N x = load(values + p, left);
#pragma GCC unroll 3
    for (int j = 0; j < B; ++j) sum[j].add(x, load(others[j] + p, left));
  });
  for (int j = 0; j < B; ++j) out[j] += sum[j].value();
}

// All sums of a tile that are taken in double; `others` are nullptr if they are the rows themselves.
template <class G>
void gram_wide(const GramTile<G>& tile, bool diagonal, double* out) {
  const Rows<G>&x = tile.rows, &y = tile.others;
  if (!diagonal && !y.of)
    return with_count<gram_few>(tile.count,
                                [&](auto count) { gram_few_rows<decltype(count)::value>(x, tile.columns, out); });
  for (int64_t i = 0; i < tile.count; ++i) {
    if (diagonal && !x[i]) continue;
    if (!y.of)
      gram_few_rows<1>(x.from(i), tile.columns, out + i);
    else if (diagonal)
      gram_few_others<1>(x[i], y.from(i), tile.columns, out + i);
    else
      with_count<gram_few>(tile.count, [&](auto count) {
        constexpr int B = decltype(count)::value;
        gram_few_others<B>(x[i], y, tile.columns, out + i * B);
      });
  }
}
