// out = sum_t grads[t] + coefficients[layer][owner] grads[owner]
#include "priority_problem.h"

using namespace data;

template <class G, class O>
static PriorityResults run(const PriorityProblem& p, const Matrix<G>& grads, const Kernels& level, int threads) {
  Matrix<O> out(1, p.layout);
  const int64_t count = int64_t(p.chunks.size());
  std::vector<double> dots(count * p.tasks * p.tasks, 0.), coefficients(p.layers * p.tasks, 0.);
  const Priority s = p.arguments(grads, out, dots, coefficients);
  Layout shared = p.layout;
  shared.chunks = p.chunks;
  with_threads(threads, shared, [&](int64_t begin, int64_t end) { level.priority_dots(s, begin, end); });
  for (int64_t layer = 0, first = 0, last; layer < p.layers; ++layer) {
    while (p.layer_of(p.chunks[first]) < layer) ++first;
    for (last = first; last < count && p.layer_of(p.chunks[last]) == layer;) ++last;
    for (int64_t owner = 0; owner < p.tasks; ++owner)
      coefficients[layer * p.tasks + owner] = layer_coefficient(s, owner, first, last);
  }
  with_threads(threads, shared, [&](int64_t begin, int64_t end) { level.priority_combine(s, begin, end); });
  return {out.bytes(), dots, coefficients};
}

template <class G, class O>
static void check_priority(int64_t tasks) {
  Random random;
  const PriorityProblem problem(tasks);
  const Matrix<G> grads = random.matrix<G>(tasks, problem.layout);
  PriorityResults first;
  for_levels_and_threads([&](const Kernels& level, int threads) {
    const PriorityResults results = run<G, O>(problem, grads, level, threads);
    if (first.out.empty()) {
      first = results;
      check_values<G, O>(problem, grads, results);
    }
    CHECK_EQUAL(results.out, first.out);
    CHECK_EQUAL(results.dots, first.dots);
    CHECK_EQUAL(results.coefficients, first.coefficients);
  });
}

template <class G>
static void check_tasks() {
  for (const int64_t tasks : {1, 2, 3, 4, 5, 8}) {
    check_priority<G, G>(tasks);
    check_priority<G, Scalar<G>>(tasks);
  }
}

TEST(of_float) { check_tasks<float>(); }
TEST(of_double) { check_tasks<double>(); }
TEST(of_bfloat16) { check_tasks<bfloat16>(); }
TEST(of_float16) { check_tasks<float16>(); }

TEST(coefficient_of_a_conflict) {
  const double dots[] = {4., -2., 3., -1.};
  CHECK_EQUAL(conflict_coefficient(dots, 4, 0), 0.75);
  const double no_gradient[] = {0., 0.}, not_a_number[] = {NAN, -1.}, other_not_a_number[] = {1., NAN};
  CHECK_EQUAL(conflict_coefficient(no_gradient, 2, 0), 0.);
  CHECK_EQUAL(conflict_coefficient(not_a_number, 2, 0), 0.);
  CHECK_EQUAL(conflict_coefficient(other_not_a_number, 2, 0), 0.);
}
