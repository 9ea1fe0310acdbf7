// Emulated `gram`: close to sums in double (threads share out columns otherwise
// than the CPU's lanes do, so bits differ from the CPU's), and the same bits in
// every order.
#include "check.h"
#include "gram_problem.h"
#include "orders.h"

using namespace data;

// What the sums of a segment should be, and what their rounding is in
// proportion to.
template <class G>
static void check_segments(const GramCase& of, const Matrix<G>& x, const Matrix<G>& y, const Layout& layout,
                           const std::vector<double>& out, double tolerance) {
  const int64_t rows = of.rows, segments = int64_t(numels.size()), size = of.diagonal() ? rows : rows * rows;
  std::vector<double> sums(out.size()), bounds(out.size());
  for (int64_t b = 0; b < of.batch; ++b)
    for (const Chunk& chunk : layout.chunks) {
      const Expected e = expected_of(x, y, of, b, chunk);
      for (int64_t q = 0; q < size; ++q) {
        const int64_t i = of.diagonal() ? q : q / rows, j = of.diagonal() ? q : q % rows;
        const int64_t at = (b * segments + chunk.segment) * size + q;
        sums[at] += e.gram[i * rows + j], bounds[at] += e.lengths[i] * e.other_lengths[j];
      }
    }
  for (size_t at = 0; at < out.size(); ++at) CHECK_NEAR(out[at], sums[at], tolerance * bounds[at]);
}

// piece: columns of a chunk, at most; or 0: as the layout has them.
template <class G>
static void check_gram(const GramCase& of, double offset, double scale, double tolerance, int64_t piece = 0) {
  Random random;
  Layout layout = plan_layout(numels);
  if (piece > 0) {
    std::vector<Chunk> pieces;
    for (const Chunk& c : layout.chunks)
      for (int64_t at = c.begin; at < c.end; at += piece)
        pieces.push_back({c.segment, at, std::min(at + piece, c.end)});
    layout.chunks = pieces;
  }
  Matrix<G> x = random.matrix<G>(of.batch * of.rows, layout, scale, offset);
  if (!of.centre) set_some_to_zero(x, layout);
  const Matrix<G> others = random.matrix<G>(of.batch * of.rows, layout, scale, offset);
  const Matrix<G>& y = of.cross() ? others : x;
  Gram s = gram_arguments(of, layout, x, y);
  const int64_t segments = int64_t(numels.size()), size = of.diagonal() ? of.rows : of.rows * of.rows;
  const BothWays<G> both(x, of.rows, layout);
  std::vector<Gradients> ways = both.all();
  if (of.cross() || of.centre) ways.pop_back();
  std::vector<double> first;
  for_orders([&] {
    for (const Gradients& where : ways) {
      std::vector<double> partials(of.batch * s.num_chunks * gram_sums(s), NAN), out(of.batch * segments * size, NAN);
      s.values = where, s.partials = partials.data();
      check_launched(cuda::gram(s, out.data(), segments, nullptr));
      if (first.empty()) check_segments(of, x, y, layout, first = out, tolerance);
      CHECK_EQUAL(out, first);
    }
  });
}

// One number of rows for each kernel that is compiled, and panels that are not full.
TEST(of_float) {
  for (const int64_t rows : {1, 2, 3}) check_gram<float>({1, rows, Pairs::all, false}, 0., 1., 1e-13);
  check_gram<float>({2, 4, Pairs::all, false}, 0., 1., 1e-6);
  check_gram<float>({1, 11, Pairs::all, true}, 0., 1., 1e-6);
  check_gram<float>({1, 5, Pairs::cross, false}, 0., 1., 1e-6);
  check_gram<float>({2, 3, Pairs::diagonal, true}, 0., 1., 1e-6);
  check_gram<float>({1, 5, Pairs::cross_diagonal, false}, 0., 1., 1e-13);
  check_gram<float>({2, 5, Pairs::diagonal, false}, 0., 1., 1e-13);
  check_gram<float>({1, 11, Pairs::all, false}, 0., 1., 1e-6);
}
TEST(of_double) {
  check_gram<double>({1, 4, Pairs::all, false}, 0., 1., 1e-13);
  check_gram<double>({2, 6, Pairs::all, false}, 0., 1., 1e-13);
  check_gram<double>({1, 2, Pairs::cross, false}, 0., 1., 1e-13);
  check_gram<double>({1, 5, Pairs::all, true}, 0., 1., 1e-13);
}
TEST(of_four_to_sixteen_rows) {
  for (int64_t rows = 4; rows <= 16; ++rows) {
    check_gram<float>({1, rows, Pairs::all, rows % 2 == 0}, 0., 1., 1e-6);
  }
  for (const int64_t rows : {5, 10, 16}) check_gram<bfloat16>({1, rows, Pairs::all, rows % 2 == 1}, 0., 1., 1e-6);
  check_gram<float16>({2, 16, Pairs::all, false}, 0., 1., 1e-6);
  check_gram<float>({1, 16, Pairs::all, false}, 0., 1e-30, 1e-6);
  check_gram<float>({1, 9, Pairs::all, true}, 0., 1e25, 1e-6);
}
TEST(of_bfloat16) { check_gram<bfloat16>({1, 5, Pairs::all, false}, 0., 1., 1e-6); }
TEST(of_float16) { check_gram<float16>({1, 5, Pairs::all, true}, 0., 1., 1e-6); }

TEST(of_numbers_whose_squares_are_no_floats) {
  check_gram<float>({1, 5, Pairs::all, false}, 0., 1e-30, 1e-6);
  check_gram<float>({1, 5, Pairs::cross, false}, 0., 1e25, 1e-6);
}
// So many of one segment that a thread of the second stage adds up several.
TEST(of_many_chunks) {
  check_gram<float>({2, 3, Pairs::all, true}, 0., 1., 1e-6, 16);
  check_gram<double>({1, 5, Pairs::cross, true}, 0., 1., 1e-13, 16);
}
TEST(centred_about_a_large_mean) { check_gram<float>({1, 5, Pairs::all, true}, 1000., 1., 1e-6); }
