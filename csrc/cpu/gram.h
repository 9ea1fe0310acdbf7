// Inner products of all pairs of rows.  Included by kernels_impl.h.
//
// float within a tile of columns, double across tiles; the pairs of up to three rows, which are nearly free, in double
// throughout.  The order in which a pair is summed depends on the column alone: not on the block of pairs that it is
// computed in (which differs between instruction sets), nor on threads.

constexpr int64_t gram_scratch = 256 * 1024;  // bytes of a thread's stack, for centred rows

// Columns that are summed in one go.  Rows of scratch get sixteen elements more: a power of two apart they would fall
// into the same cache sets.
template <class G>
inline int64_t gram_tile(int64_t rows) {
  return least(1024, (gram_scratch / int64_t(sizeof(Scalar<G>)) / rows - 16) & ~int64_t(15));
}

inline F16 zero_of(F16*) { return set1(0.f); }
inline D8 zero_of(D8*) { return set1(0.); }

template <class N>
struct Sum {
  N sum = zero_of(static_cast<N*>(nullptr));
  void add(N a, N b) { sum = fma(a, b, sum); }
  double value() const { return total(sum); }
};
struct WideSum {  // products of floats are exact in double
  D8 lower = set1(0.), upper = set1(0.);
  void add(F16 a, F16 b) {
    lower = fma(lower_half(a), lower_half(b), lower);
    upper = fma(upper_half(a), upper_half(b), upper);
  }
  double value() const { return total(lower + upper); }
};
template <class N>
struct SumOfFew {
  using type = WideSum;
};
template <>
struct SumOfFew<D8> {
  using type = Sum<D8>;
};

inline double* pair(double* out, int64_t a, int64_t b) { return out + a * (a + 1) / 2 + b; }

// Pairs (a + i, b + j), i < A, j < B, of rows that lie `row` apart.
template <int A, int B, class S, class G>
void gram_block(const G* values, int64_t row, int64_t a, int64_t b, int64_t n, double* out) {
  using N = Number<G>;
  S sum[A][B];
  for_groups<N>(n, [&](int64_t p, auto left) {
    N y[B];
#pragma GCC unroll 4
    for (int j = 0; j < B; ++j) y[j] = load(values + (b + j) * row + p, left);
#pragma GCC unroll 4
    for (int i = 0; i < A; ++i) {
      const N x = load(values + (a + i) * row + p, left);
#pragma GCC unroll 4
      for (int j = 0; j < B; ++j) sum[i][j].add(x, y[j]);
    }
  });
  for (int i = 0; i < A; ++i)
    for (int j = 0; j < B; ++j)
      if (b + j <= a + i) *pair(out, a + i, b + j) += sum[i][j].value();
}
template <int A, class S, class G>
void gram_blocks(const G* values, int64_t row, int64_t a, int64_t n, double* out) {
  int64_t b = 0;
  for (; b + gram_b <= a + A; b += gram_b) gram_block<A, gram_b, S>(values, row, a, b, n, out);
  for (; b < a + A; ++b) gram_block<A, 1, S>(values, row, a, b, n, out);
}
template <class G>
void gram_many(const G* values, int64_t row, int64_t rows, int64_t n, double* out) {
  using S = Sum<Number<G>>;
  int64_t a = 0;
  for (; a + gram_a <= rows; a += gram_a) gram_blocks<gram_a, S>(values, row, a, n, out);
  for (; a < rows; ++a) gram_blocks<1, S>(values, row, a, n, out);
}

// All pairs of one, two or three rows, each element loaded once.
template <int R, class G>
void gram_few(const G* values, int64_t row, int64_t n, double* out) {
  using N = Number<G>;
  typename SumOfFew<N>::type sum[R * (R + 1) / 2];
  for_groups<N>(n, [&](int64_t p, auto left) {
    N x[R];
#pragma GCC unroll 3
    for (int i = 0; i < R; ++i) x[i] = load(values + i * row + p, left);
    int q = 0;
#pragma GCC unroll 3
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 3
      for (int j = 0; j <= i; ++j, ++q) sum[q].add(x[i], x[j]);
  });
  for (int q = 0; q < R * (R + 1) / 2; ++q) out[q] += sum[q].value();
}
template <class G>
void gram_pairs(const G* values, int64_t row, int64_t rows, int64_t n, double* out) {
  switch (rows) {
    case 1: return gram_few<1>(values, row, n, out);
    case 2: return gram_few<2>(values, row, n, out);
    case 3: return gram_few<3>(values, row, n, out);
    default: return gram_many(values, row, rows, n, out);
  }
}

// Rows of a tile less their mean.  Taken from differences to the first row, which are exact or nearly so where the rows
// are close to one another: the mean itself would carry a rounding error of the size of the rows.
template <class G>
void centre_rows(const G* values, int64_t row, int64_t rows, int64_t n, Scalar<G>* out, int64_t stride) {
  using N = Number<G>;
  const N share = set1(Scalar<G>(1) / Scalar<G>(rows));
  for_groups<N>(n, [&](int64_t p, auto left) {
    const N first = load(values + p, left);
    N sum = first - first;
    for (int64_t i = 1; i < rows; ++i) {
      const N difference = load(values + i * row + p, left) - first;
      store(out + i * stride + p, difference);
      sum = sum + difference;
    }
    const N mean = sum * share;
    store(out + p, first - first - mean);
    for (int64_t i = 1; i < rows; ++i) store(out + i * stride + p, load(out + i * stride + p) - mean);
  });
}

template <class G>
void gram_chunk(const Gram& s, const Chunk& chunk, const G* values, double* out) {
  alignas(64) Scalar<G> centred[gram_scratch / sizeof(Scalar<G>)];
  const int64_t tile = gram_tile<G>(s.rows), stride = tile + 16;
  for (int64_t q = 0; q < s.rows * (s.rows + 1) / 2; ++q) out[q] = 0.;
  for (int64_t p = chunk.begin; p < chunk.end; p += tile) {
    const int64_t n = least(tile, chunk.end - p);
    if (s.centre) {
      centre_rows(values + p, s.row, s.rows, n, centred, stride);
      gram_pairs<Scalar<G>>(centred, stride, s.rows, n, out);
    } else {
      gram_pairs(values + p, s.row, s.rows, n, out);
    }
  }
}

void gram(const Gram& s, int64_t first, int64_t last) {
  with_type(s.type, [&](auto type) {
    using G = typename decltype(type)::type;
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t c = first; c < last; ++c) {
        double* out = s.partials + (b * s.num_chunks + c) * (s.rows * (s.rows + 1) / 2);
        gram_chunk(s, s.chunks[c], static_cast<const G*>(s.values) + b * s.batch_stride, out);
      }
  });
}
