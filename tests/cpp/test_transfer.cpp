// theta <- M theta
#include "check.h"
#include "packed.h"

using namespace data;

template <class S>
static void check_transfer(int64_t rows, bool for_each_segment, bool sparse, double offset) {
  Random random;
  const Layout layout = plan_layout(numels);
  const Matrix<S> theta = random.matrix<S>(rows, layout, 1., offset);
  std::vector<double> mixes;
  for (size_t i = 0; i < (for_each_segment ? numels.size() : 1); ++i) {
    const std::vector<double> mix = random.mix(rows, sparse);
    mixes.insert(mixes.end(), mix.begin(), mix.end());
  }
  const Packed<S> packed(mixes, rows);
  Bytes first;
  for (const int64_t tile : {16, 2048})
    for_levels_and_threads([&](const Kernels& level, int threads) {
      Matrix<S> mixed = theta;
      const Transfer s = {rows, mixed.values.data(), type_of<S>, mixed.row, packed.mix(), layout.chunks.data(), tile};
      with_threads(threads, layout, [&](int64_t begin, int64_t end) { level.transfer(s, begin, end); });
      if (first.empty()) {
        first = mixed.bytes();
        for (int64_t k = 0; k < rows; ++k)
          for (const Chunk& c : layout.chunks)
            for (int64_t p = c.begin; p < c.end; ++p) {
              const double* m = mixes.data() + ((for_each_segment ? c.segment : 0) * rows + k) * rows;
              double sum = 0., differences = 0.;
              for (int64_t j = 0; j < rows; ++j) {
                sum += m[j] * theta.at(j, p);
                differences += std::fabs(theta.at(j, p) - theta.at(0, p));
              }
              if (m[k] == 1.) CHECK(mixed.at(k, p) == theta.at(k, p));
              CHECK_NEAR(mixed.at(k, p), sum, rounding<S> * (2. * std::fabs(sum) + double(rows + 4) * differences));
            }
      }
      CHECK_EQUAL(mixed.bytes(), first);
    });
}

template <class S>
static void check_shapes() {
  for (const int64_t rows : {1, 2, 3, 4, 5, 8, 17})
    for (const bool for_each_segment : {false, true})
      for (const bool sparse : {false, true}) check_transfer<S>(rows, for_each_segment, sparse, 0.);
}

TEST(of_float) { check_shapes<float>(); }
TEST(of_double) { check_shapes<double>(); }
TEST(about_a_large_mean) { check_transfer<float>(5, false, false, 1000.); }
