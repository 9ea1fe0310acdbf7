// Products of many rows: in floats over a tile, where these are in range, and in double across.  Included by gram.h.

// The largest absolute value; NaN is passed over.
inline float largest_of(const float* x, int64_t n) {
  const F16 zero = set1(0.f);
  F16 largest = zero;
  for_groups<F16>(n, [&](int64_t p, auto left) {
    const F16 value = load(x + p, left);
    largest = max(max(value, zero - value), largest);
  });
  float lanes[16], result = 0.f;
  store(lanes, largest);
  for (const float lane : lanes) result = lane > result ? lane : result;
  return result;
}

// Divides rows that are out of range by powers of two, `scales`: all rows of the tile are then those in `to` (where
// they may be already).  False, and nothing was done, if no row has to be.
__attribute__((noinline)) bool divide_rows(Rows<float>& x, int64_t count, int64_t n, const double* squares,
                                           Scratch<float> to, double* scales) {
  int32_t exponents[max_rows];
  bool any = false;
  for (int64_t i = 0; i < count; ++i) {
    const float square = float(squares[i]);
    exponents[i] = gram_in_range(square) ? 0 : gram_exponent(square, largest_of(x[i], n));
    scales[i] = gram_power(exponents[i]);
    any = any || exponents[i];
  }
  if (!any) return false;
  for (int64_t i = 0; i < count; ++i) {
    const F16 inverse = set1(gram_power(-exponents[i]));
    const float* from = x[i];
    float* into = to[i];
    for_groups<F16>(n, [&](int64_t p, auto left) { store(into + p, load(from + p, left) * inverse, left); });
  }
  x = to.rows();
  return true;
}
// The same after a glance at the squares.
inline bool scale_rows(Rows<float>& x, int64_t count, int64_t n, const double* squares, Scratch<float> to,
                       double* scales) {
  bool right = true;
  for (int64_t i = 0; i < count; ++i) right = right && gram_in_range(float(squares[i]));
  return !right && divide_rows(x, count, n, squares, to, scales);
}
inline bool scale_rows(Rows<double>&, int64_t, int64_t, const double*, Scratch<double>, double*) {
  return false;  // the range of float64 is the user's own
}

// Row i's sums with those rows of its panel that come before it, and with itself.
struct GramTriangles {
  double of[(max_rows + gram_a - 1) / gram_a * gram_a][gram_a];
  template <class S>
  void take(Rows<S> x, int64_t count, int64_t n) {
    for (int64_t i = 0; i < count; i += gram_a)
      with_count<gram_a>(count - i, [&](auto rows) { gram_triangle<decltype(rows)::value>(x.from(i), n, of + i); });
  }
};
template <class S>
void gram_all_pairs(const GramTile<S>& tile, Scratch<S> scratch, double* out) {
  Rows<S> x = tile.rows;
  const int64_t count = tile.count, n = tile.columns;
  GramTriangles triangles;
  double squares[max_rows], scales[max_rows];
  triangles.take(x, count, n);
  for (int64_t i = 0; i < count; ++i) squares[i] = triangles.of[i][i % gram_a];
  const bool scaled = scale_rows(x, count, n, squares, scratch, scales);
  if (scaled) triangles.take(x, count, n);
  const auto add = [&](int64_t i, int64_t j, double sum) {
    out[gram_pair(i, j)] += scaled ? sum * scales[i] * scales[j] : sum;
  };
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = i - i % gram_a; j <= i; ++j) add(i, j, triangles.of[i][j % gram_a]);
  const int64_t panels = count - count % gram_a;
  for (int64_t i = gram_a; i < panels; i += gram_a)
    gram_rectangle(x.from(i), gram_a, x, i, n, [&](int64_t a, int64_t b, double sum) { add(i + a, b, sum); });
  gram_rectangle(x, panels, x.from(panels), count - panels, n,
                 [&](int64_t a, int64_t b, double sum) { add(panels + b, a, sum); });
}

// Squares of A rows.
template <int A>
__attribute__((noinline)) void gram_squares(Rows<float> x, int64_t n, double* out) {
  F16 sum[A];
  for (F16& one : sum) one = set1(0.f);
  for_groups<F16>(n, [&](int64_t p, auto left) {
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) {
      const F16 a = load(x[i] + p, left);
      sum[i] = fma(a, a, sum[i]);
    }
  });
  for (int i = 0; i < A; ++i) out[i] = total(sum[i]);
}
inline bool scaled_by_squares(Rows<float>& x, int64_t count, int64_t n, Scratch<float> scratch, double* scales) {
  double squares[max_rows];
  for (int64_t i = 0; i < count; i += 4)
    with_count<4>(count - i, [&](auto rows) { gram_squares<decltype(rows)::value>(x.from(i), n, squares + i); });
  for (int64_t i = 0; i < count; ++i) scales[i] = 1.;
  return scale_rows(x, count, n, squares, scratch, scales);
}
inline bool scaled_by_squares(Rows<double>&, int64_t, int64_t, Scratch<double>, double*) { return false; }

template <class S>
void gram_cross(const GramTile<S>& tile, Scratch<S> scratch, double* out) {
  Rows<S> x = tile.rows, y = tile.others;
  const int64_t count = tile.count, n = tile.columns;
  double scales[2][max_rows];
  const bool rows_scaled = scaled_by_squares(x, count, n, scratch, scales[0]);
  const bool scaled = scaled_by_squares(y, count, n, scratch.from(count), scales[1]) || rows_scaled;
  gram_rectangle(x, count, y, count, n, [&](int64_t i, int64_t j, double sum) {
    out[i * count + j] += scaled ? sum * scales[0][i] * scales[1][j] : sum;
  });
}

template <class S>
void gram_many(const GramTile<S>& tile, Scratch<S> scratch, double* out) {
  tile.others.of ? gram_cross(tile, scratch, out) : gram_all_pairs(tile, scratch, out);
}
