// Emulated `combine`: the bits of the CPU's.
#include "check.h"
#include "orders.h"

using namespace data;

template <class G, class O>
static void check_combine(int64_t rows, int64_t tasks) {
  Random random;
  const Layout layout = plan_layout(numels);
  Matrix<G> grads = random.matrix<G>(rows * tasks, layout);
  set_some_to_zero(grads, layout);
  const BothWays<G> both(grads, tasks, layout);
  const std::vector<double> weights = random.weights(rows * tasks);
  Matrix<O> expected(rows, layout);
  Combine s = {rows,       tasks,        both.all().front(), expected.values.data(),
               type_of<O>, expected.row, weights.data(),     layout.chunks.data()};
  kernels().combine(s, 0, int64_t(layout.chunks.size()));
  for_orders([&] {
    for (const Gradients& where : both.all()) {
      Matrix<O> out(rows, layout);
      s.grads = where, s.out = out.values.data();
      check_launched(cuda::combine(s, extent_of(layout), nullptr));
      CHECK_EQUAL(out.bytes(), expected.bytes());
    }
  });
}

template <class G>
static void check_shapes() {
  check_combine<G, G>(1, 1);
  check_combine<G, Scalar<G>>(3, 5);
}

TEST(of_float) { check_shapes<float>(); }
TEST(of_double) { check_shapes<double>(); }
TEST(of_bfloat16) { check_shapes<bfloat16>(); }
TEST(of_float16) { check_shapes<float16>(); }
