// out[k] = sum_t weights[k][t] grads[k][t]
#include "check.h"
#include "data.h"

using namespace data;

template <class G, class O>
static void check_combine(int64_t rows, int64_t tasks) {
  Random random;
  const Layout layout = plan_layout(numels);
  Matrix<G> grads = random.matrix<G>(rows * tasks, layout);
  set_some_to_zero(grads, layout);
  const BothWays<G> both(grads, tasks, layout);
  const std::vector<double> weights = random.weights(rows * tasks);
  Bytes first;
  const auto run = [&](const Kernels& level, int threads, const Gradients& where) {
    Matrix<O> out(rows, layout);
    const Combine s = {rows,       tasks,   where,          out.values.data(),
                       type_of<O>, out.row, weights.data(), layout.chunks.data()};
    with_threads(threads, layout, [&](int64_t begin, int64_t end) { level.combine(s, begin, end); });
    return out;
  };
  for_levels_and_threads([&](const Kernels& level, int threads) {
    for (const Gradients& where : both.all()) {
      const Matrix<O> out = run(level, threads, where);
      if (first.empty()) {
        first = out.bytes();
        for (int64_t k = 0; k < rows; ++k)
          for (const Chunk& c : layout.chunks)
            for (int64_t p = c.begin; p < c.end; ++p) {
              double sum = 0., size = 0.;
              for (int64_t t = 0; t < tasks; ++t) {
                const double term = weights[k * tasks + t] * grads.at(k * tasks + t, p);
                sum += term, size += std::fabs(term);
              }
              CHECK_NEAR(out.at(k, p), sum,
                         rounding<O> * std::fabs(sum) + rounding<Scalar<G>> * double(tasks + 2) * size);
            }
      }
      CHECK_EQUAL(out.bytes(), first);
    }
  });
}

template <class G>
static void check_shapes() {
  for (const int64_t rows : {1, 3})
    for (const int64_t tasks : {1, 2, 5}) {
      check_combine<G, G>(rows, tasks);
      check_combine<G, Scalar<G>>(rows, tasks);
    }
}

TEST(of_float) { check_shapes<float>(); }
TEST(of_double) { check_shapes<double>(); }
TEST(of_bfloat16) { check_shapes<bfloat16>(); }
TEST(of_float16) { check_shapes<float16>(); }
