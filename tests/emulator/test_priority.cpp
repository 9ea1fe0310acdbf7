// Emulated `priority`: coefficients close to those of sums in double (threads share out columns otherwise than the
// CPU's lanes do), the CPU's bits of the sum that is corrected with them, and the same bits in every order.
#include "orders.h"
#include "priority_problem.h"

using namespace data;

// The bits of the CPU's second sweep with these coefficients.
template <class G, class O>
static Bytes corrected_by_cpu(const PriorityProblem& p, const Matrix<G>& grads, PriorityResults results) {
  Matrix<O> out(1, p.layout);
  kernels().priority_combine(p.arguments(grads, out, results.dots, results.coefficients), 0, int64_t(p.chunks.size()));
  return out.bytes();
}

template <class G, class O>
static void check_priority(int64_t tasks) {
  Random random;
  const PriorityProblem p(tasks);
  const Matrix<G> grads = random.matrix<G>(tasks, p.layout);
  const int64_t chunks = int64_t(p.chunks.size());
  PriorityResults first;
  for_orders([&] {
    Matrix<O> out(1, p.layout);
    std::vector<double> dots(chunks * tasks * tasks, NAN), coefficients(p.layers * tasks, NAN);
    const Priority s = p.arguments(grads, out, dots, coefficients);
    check_launched(cuda::priority(s, p.layers, {chunks, p.layout.row}, nullptr));
    if (first.out.empty()) {
      first = {out.bytes(), dots, coefficients};
      check_values<G, O>(p, grads, first);
      CHECK_EQUAL(first.out, (corrected_by_cpu<G, O>(p, grads, first)));
    }
    CHECK_EQUAL(out.bytes(), first.out);
    CHECK_EQUAL(coefficients, first.coefficients);
  });
}

// All products by one block, of the fewest columns at a time as well; and products by two panels of four tasks.
template <class G>
static void check_tasks() {
  check_priority<G, G>(3);
  check_priority<G, Scalar<G>>(5);
  check_priority<G, G>(6);
}

TEST(of_float) { check_tasks<float>(); }
TEST(of_double) { check_tasks<double>(); }
TEST(of_bfloat16) { check_tasks<bfloat16>(); }
TEST(of_float16) { check_tasks<float16>(); }

TEST(of_other_numbers_of_tasks) {
  for (const int64_t tasks : {1, 2, 4, 9}) check_priority<float, float>(tasks);
}

// The second half of a tensor is a layer of its own, which begins behind a multiple of sixteen bytes.
TEST(of_records_that_begin_anywhere) {
  Random random;
  PriorityProblem p(2);
  const PriorityRecord whole = p.records.back();
  p.records.back() = {2, 8, 2, whole.offset + 3, 1001, 1};
  while (p.layer_of(p.chunks.back()) == 2) p.chunks.pop_back();
  p.chunks.push_back({int64_t(p.records.size()) - 1, whole.offset + 3, whole.offset + 3 + 2002});
  const Matrix<bfloat16> grads = random.matrix<bfloat16>(2, p.layout);
  Matrix<float> out(1, p.layout);
  std::vector<double> dots(p.chunks.size() * 4, NAN), coefficients(p.layers * 2, NAN);
  const Priority s = p.arguments(grads, out, dots, coefficients);
  check_launched(cuda::priority(s, p.layers, {int64_t(p.chunks.size()), p.layout.row}, nullptr));
  check_values<bfloat16, float>(p, grads, {out.bytes(), dots, coefficients});
}
