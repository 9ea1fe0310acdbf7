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

// Squares of up to gram_a rows.
template <int A, class S>
__attribute__((noinline)) void gram_squares(Rows<S> x, int64_t n, double* out) {
  using N = Number<S>;
  N sum[A];
  for (N& one : sum) one = set1(S(0));
  for_groups<N>(n, [&](int64_t p, auto left) {
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) {
      const N a = load(x[i] + p, left);
      sum[i] = fma(a, a, sum[i]);
    }
  });
  for (int i = 0; i < A; ++i) out[i] = total(sum[i]);
}

// Where rows are out of range: copies all of them to `scratch` (where they may be already), divided by the powers of
// two in `scales`.  False, and nothing was written, if there are none.
inline bool scale_rows(Rows<float> x, int64_t count, int64_t n, const double* squares, Scratch<float> to,
                       double* scales) {
  int32_t exponents[max_rows];
  bool any = false;
  for (int64_t i = 0; i < count; ++i) {
    const float square = float(squares[i]);
    exponents[i] = gram_in_range(square) ? 0 : gram_exponent(square, largest_of(x[i], n));
    any = any || exponents[i];
  }
  for (int64_t i = 0; any && i < count; ++i) {
    const F16 inverse = set1(gram_power(-exponents[i]));
    for_groups<F16>(n, [&](int64_t p, auto left) { store(to[i] + p, load(x[i] + p, left) * inverse, left); });
    scales[i] = gram_power(exponents[i]);
  }
  return any;
}
inline bool scale_rows(Rows<double>, int64_t, int64_t, const double*, Scratch<double>, double*) {
  return false;  // the range of float64 is the user's own
}

constexpr int gram_triangle_sums = gram_a * (gram_a + 1) / 2;
template <class S>
void gram_triangles(Rows<S> x, int64_t count, int64_t n, double (*out)[gram_triangle_sums]) {
  for (int64_t i = 0; i < count; i += gram_a)
    with_count<gram_a>(count - i,
                       [&](auto rows) { gram_triangle<decltype(rows)::value>(x.from(i), n, out[i / gram_a]); });
}
template <class S>
void gram_all_pairs(const GramTile<S>& tile, Scratch<S> scratch, double* out) {
  Rows<S> x = tile.rows;
  const int64_t count = tile.count, n = tile.columns;
  double triangles[max_rows / gram_a + 1][gram_triangle_sums], squares[max_rows] = {}, scales[max_rows];
  gram_triangles(x, count, n, triangles);
  for (int64_t i = 0; i < count; ++i)
    squares[i] = triangles[i / gram_a][gram_pair(i % gram_a, i % gram_a)], scales[i] = 1.;
  const bool scaled = scale_rows(x, count, n, squares, scratch, scales);
  if (scaled) {
    x = scratch.rows();
    gram_triangles(x, count, n, triangles);
  }
  const auto add = [&](int64_t i, int64_t j, double sum) {
    out[gram_pair(i, j)] += scaled ? sum * scales[i] * scales[j] : sum;
  };
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = i - i % gram_a; j <= i; ++j) add(i, j, triangles[i / gram_a][gram_pair(i % gram_a, j % gram_a)]);
  const int64_t panels = count - count % gram_a;
  for (int64_t i = gram_a; i < panels; i += gram_a)
    gram_rectangle(x.from(i), gram_a, x, i, n, [&](int64_t a, int64_t b, double sum) { add(i + a, b, sum); });
  gram_rectangle(x, panels, x.from(panels), count - panels, n,
                 [&](int64_t a, int64_t b, double sum) { add(panels + b, a, sum); });
}

template <class S>
void gram_squares_of(Rows<S> x, int64_t count, int64_t n, double* out) {
  for (int64_t i = 0; i < count; i += gram_a)
    with_count<gram_a>(count - i, [&](auto rows) { gram_squares<decltype(rows)::value>(x.from(i), n, out + i); });
}
// Takes the squares of rows; where these are out of range, the rows become scaled ones in `scratch`.
inline bool gram_scaled(Rows<float>& x, int64_t count, int64_t n, Scratch<float> scratch, double* scales) {
  double squares[max_rows] = {};
  gram_squares_of(x, count, n, squares);
  for (int64_t i = 0; i < count; ++i) scales[i] = 1.;
  if (!scale_rows(x, count, n, squares, scratch, scales)) return false;
  x = scratch.rows();
  return true;
}
inline bool gram_scaled(Rows<double>&, int64_t, int64_t, Scratch<double>, double*) { return false; }

template <class S>
void gram_cross(const GramTile<S>& tile, Scratch<S> scratch, double* out) {
  Rows<S> x = tile.rows, y = tile.others;
  const int64_t count = tile.count, n = tile.columns;
  double scales[2][max_rows];
  const bool scaled[] = {gram_scaled(x, count, n, scratch, scales[0]),
                         gram_scaled(y, count, n, scratch.from(count), scales[1])};
  gram_rectangle(x, count, y, count, n, [&](int64_t i, int64_t j, double sum) {
    out[i * count + j] += scaled[0] || scaled[1] ? sum * scales[0][i] * scales[1][j] : sum;
  });
}

template <class S>
void gram_many(const GramTile<S>& tile, Scratch<S> scratch, double* out) {
  tile.others.values ? gram_cross(tile, scratch, out) : gram_all_pairs(tile, scratch, out);
}
