// partials[b][c][q] = sum over chunk c of rows[b][i] others[b][j]
#include "check.h"
#include "gram_problem.h"

using namespace data;

// The sums of all chunks; they must have the same bits on every level, for any number of threads.
template <class G>
static std::vector<double> sums_of(const GramCase& of, const Layout& layout, const Matrix<G>& x, const Matrix<G>& y) {
  Gram s = gram_arguments(of, layout, x, y);
  const BothWays<G> both(x, of.rows, layout);
  std::vector<Gradients> ways = both.all();
  if (of.cross() || of.centre) ways.pop_back();
  std::vector<double> first;
  for_levels_and_threads([&](const Kernels& level, int threads) {
    for (const Gradients& where : ways) {
      std::vector<double> partials(of.batch * s.num_chunks * gram_sums(s), NAN);
      s.values = where, s.partials = partials.data();
      with_threads(threads, layout, [&](int64_t begin, int64_t end) { level.gram(s, begin, end); });
      if (first.empty()) first = partials;
      CHECK_EQUAL(partials, first);
    }
  });
  return first;
}

template <class G>
static void check_gram(const GramCase& of, const Matrix<G>& x, const Matrix<G>& others, const Layout& layout,
                       double tolerance) {
  const Matrix<G>& y = of.cross() ? others : x;
  const std::vector<double> sums = sums_of(of, layout, x, y);
  const int64_t chunks = int64_t(layout.chunks.size()), each = int64_t(sums.size()) / of.batch / chunks;
  for (int64_t b = 0; b < of.batch; ++b)
    for (int64_t c = 0; c < chunks; ++c) {
      const Expected e = expected_of(x, y, of, b, layout.chunks[c]);
      const double* got = sums.data() + (b * chunks + c) * each;
      for (int64_t i = 0; i < of.rows; ++i)
        for (int64_t j = of.diagonal() ? i : 0; j < (of.kind == Pairs::cross ? of.rows : i + 1); ++j) {
          const int64_t q = of.diagonal() ? i : of.cross() ? i * of.rows + j : gram_pair(i, j);
          CHECK_NEAR(got[q], e.gram[i * of.rows + j], tolerance * e.lengths[i] * e.other_lengths[j]);
        }
    }
}
template <class G>
static void check_random(const GramCase& of, double offset, double tolerance,
                         const Layout& layout = plan_layout(numels)) {
  Random random;
  Matrix<G> x = random.matrix<G>(of.batch * of.rows, layout, 1., offset);
  if (!of.centre) set_some_to_zero(x, layout);
  check_gram(of, x, random.matrix<G>(of.batch * of.rows, layout, 1., offset), layout, tolerance);
}

constexpr Pairs kinds[] = {Pairs::all, Pairs::cross, Pairs::diagonal, Pairs::cross_diagonal};

template <class G>
static void check_shapes(double tolerance) {
  for (const Pairs kind : kinds) {
    const bool diagonal = kind == Pairs::diagonal || kind == Pairs::cross_diagonal;
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 11, 17})
      check_random<G>({rows == 5 ? 2 : 1, rows, kind, false}, 0., diagonal || rows <= 3 ? 1e-13 : tolerance);
    for (const int64_t rows : {2, 5, 17}) check_random<G>({1, rows, kind, true}, 0., tolerance);
  }
}

TEST(of_float) { check_shapes<float>(1e-6); }
TEST(of_double) { check_shapes<double>(1e-13); }
TEST(of_bfloat16) { check_shapes<bfloat16>(1e-6); }
TEST(of_float16) { check_shapes<float16>(1e-6); }
TEST(as_many_rows_as_there_may_be) {
  const Layout few_columns = plan_layout({3, 0, 300});
  check_random<float>({1, max_rows, Pairs::all, false}, 0., 1e-6, few_columns);
  check_random<double>({1, max_rows, Pairs::cross, true}, 0., 1e-13, few_columns);
}

// Rows that are close to one another and far from zero.
TEST(centred_about_a_large_mean) {
  for (const Pairs kind : kinds) {
    check_random<float>({1, 5, kind, true}, 1000., 1e-6);
    check_random<double>({1, 5, kind, true}, 1e6, 1e-9);
  }
}

// Rows of all sizes that floats have, zeros among them; each has the accuracy of its own size.
TEST(out_of_range) {
  Random random;
  const Layout layout = plan_layout(numels);
  for (const int64_t rows : {3, 7, 16})
    for (const Pairs kind : kinds) {
      Matrix<float> x = random.matrix<float>(rows, layout), y = random.matrix<float>(rows, layout);
      for (int64_t i = 0; i < rows; ++i) {
        const float scale = i % 5 == 4 ? 0.f : float(std::pow(10., double(i * 37 % 73 - 36)));
        for (const Chunk& c : layout.chunks)
          for (int64_t p = c.begin; p < c.end; ++p) x[i][p] *= scale, y[rows - 1 - i][p] *= scale;
      }
      check_gram({1, rows, kind, false}, x, y, layout, 1e-6);
    }
}

TEST(exponents_that_rows_are_divided_by) {
  CHECK_EQUAL(gram_exponent(0.f, 0.f), 0);
  CHECK_EQUAL(gram_exponent(NAN, 1.f), 0);
  CHECK_EQUAL(gram_exponent(INFINITY, INFINITY), 0);
  CHECK_EQUAL(gram_exponent(INFINITY, 0x1.8p100f), 100);
  CHECK_EQUAL(gram_exponent(INFINITY, 0x1.fffffep127f), 126);
  CHECK_EQUAL(gram_exponent(0.f, 0x1.8p-100f), -100);
  CHECK_EQUAL(gram_exponent(0.f, 0x1p-149f), -126);
  for (const int32_t exponent : {-126, -100, 0, 1, 126}) CHECK_EQUAL(gram_power(exponent), std::ldexp(1.f, exponent));
}
