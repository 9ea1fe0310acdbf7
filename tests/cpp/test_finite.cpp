// found[k] = 1 where a gradient of row k is infinite or NaN
#include "check.h"
#include "data.h"

using namespace data;

template <class G>
static void check_finite() {
  Random random;
  const Layout layout = plan_layout(numels);
  const int64_t rows = 3, tasks = 2;
  const auto found = [&](const Matrix<G>& grads) {
    std::vector<float> first;
    const BothWays<G> both(grads, tasks, layout);
    for_levels_and_threads([&](const Kernels& level, int threads) {
      for (const Gradients& where : both.all()) {
        std::vector<float> flags(rows, 0.f);
        const Finite s = {rows, tasks, where, flags.data(), layout.chunks.data()};
        with_threads(threads, layout, [&](int64_t begin, int64_t end) { level.finite(s, begin, end); });
        if (first.empty()) first = flags;
        CHECK_EQUAL(flags, first);
      }
    });
    return first;
  };
  const std::vector<float> none = {0.f, 0.f, 0.f}, second = {0.f, 1.f, 0.f};
  const double largest = type_of<G> == Type::float16 ? 65504. : 3e38;
  Matrix<G> grads = random.matrix<G>(rows * tasks, layout);
  set_some_to_zero(grads, layout);
  grads[0][0] = rounded<G>(largest);  // large, but finite
  CHECK_EQUAL(found(grads), none);
  for (const Chunk& c : layout.chunks)
    for (const int64_t p : {c.begin, (c.begin + c.end) / 2, c.end - 1})
      for (const double bad : {double(INFINITY), -double(INFINITY), double(NAN)}) {
        const G good = grads[3][p];
        grads[3][p] = rounded<G>(bad);  // task 1 of row 1
        CHECK_EQUAL(found(grads), second);
        grads[3][p] = good;
      }
}

TEST(of_float) { check_finite<float>(); }
TEST(of_double) { check_finite<double>(); }
TEST(of_bfloat16) { check_finite<bfloat16>(); }
TEST(of_float16) { check_finite<float16>(); }

TEST(keeps_a_flag_that_is_set) {
  Random random;
  const Layout layout = plan_layout(numels);
  const Matrix<float> grads = random.matrix<float>(1, layout);
  float flag = 1.f;
  const BothWays<float> both(grads, 1, layout);
  const Finite s = {1, 1, both.all().front(), &flag, layout.chunks.data()};
  kernels().finite(s, 0, int64_t(layout.chunks.size()));
  CHECK_EQUAL(flag, 1.f);
}
