// partials[b][c][q] = sum over chunk c of rows[b][i] rows[b][j], q = i (i + 1) / 2 + j
#include "check.h"
#include "data.h"

using namespace data;

struct Case {
  int64_t batch, rows;
  bool centre;
};

static int64_t pairs(int64_t rows) { return rows * (rows + 1) / 2; }

// In double, of one chunk; and the lengths of the rows, with what centring rounds: the differences between the rows.
template <class G>
static void reference(const Matrix<G>& values, const Case& of, int64_t b, const Chunk& chunk, std::vector<double>& gram,
                      std::vector<double>& lengths) {
  gram.assign(pairs(of.rows), 0.), lengths.assign(of.rows, 0.);
  std::vector<double> column(of.rows);
  for (int64_t p = chunk.begin; p < chunk.end; ++p) {
    const double first = values.at(b * of.rows, p);
    double mean = 0., spread = 0.;
    for (int64_t i = 0; of.centre && i < of.rows; ++i) {
      const double difference = values.at(b * of.rows + i, p) - first;
      mean += difference / double(of.rows), spread = std::max(spread, std::fabs(difference));
    }
    for (int64_t i = 0; i < of.rows; ++i) {
      column[i] = values.at(b * of.rows + i, p) - (of.centre ? first + mean : 0.);
      lengths[i] += column[i] * column[i] + spread * spread;
    }
    int64_t q = 0;
    for (int64_t i = 0; i < of.rows; ++i)
      for (int64_t j = 0; j <= i; ++j) gram[q++] += column[i] * column[j];
  }
  for (double& length : lengths) length = std::sqrt(length);
}

template <class G>
static void check_gram(const Case& of, double offset, double tolerance) {
  Random random;
  const Layout layout = plan_layout(numels);
  const Matrix<G> values = random.matrix<G>(of.batch * of.rows, layout, 1., offset);
  const int64_t chunks = int64_t(layout.chunks.size());
  std::vector<double> first, expected, lengths;
  for_levels_and_threads([&](const Kernels& level, int threads) {
    std::vector<double> partials(of.batch * chunks * pairs(of.rows), NAN);
    const Gram s = {of.batch,
                    of.rows,
                    chunks,
                    values.values.data(),
                    type_of<G>,
                    values.row,
                    of.rows * values.row,
                    of.centre,
                    partials.data(),
                    layout.chunks.data()};
    with_threads(threads, layout, [&](int64_t begin, int64_t end) { level.gram(s, begin, end); });
    if (first.empty()) {
      first = partials;
      for (int64_t b = 0; b < of.batch; ++b)
        for (int64_t c = 0; c < chunks; ++c) {
          reference(values, of, b, layout.chunks[c], expected, lengths);
          const double* got = partials.data() + (b * chunks + c) * pairs(of.rows);
          int64_t q = 0;
          for (int64_t i = 0; i < of.rows; ++i)
            for (int64_t j = 0; j <= i; ++j, ++q) CHECK_NEAR(got[q], expected[q], tolerance * lengths[i] * lengths[j]);
        }
    }
    CHECK_EQUAL(partials, first);
  });
}

template <class G>
static void check_shapes(double tolerance) {
  for (const int64_t batch : {1, 2})
    for (const int64_t rows : {1, 2, 3, 4, 5, 8, 17})
      check_gram<G>({batch, rows, false}, 0., rows <= 3 ? 1e-13 : tolerance);
  for (const int64_t rows : {2, 3, 5, 17}) check_gram<G>({1, rows, true}, 0., tolerance);
}

TEST(of_float) { check_shapes<float>(1e-6); }
TEST(of_double) { check_shapes<double>(1e-13); }
TEST(of_bfloat16) { check_shapes<bfloat16>(1e-6); }
TEST(of_float16) { check_shapes<float16>(1e-6); }

// Rows that are close to one another and far from zero.
TEST(centred_about_a_large_mean) {
  check_gram<float>({1, 5, true}, 1000., 1e-6);
  check_gram<double>({1, 5, true}, 1e6, 1e-9);
}
