// Emulated views, scores and exchanges of masks: the bits of the CPU's.
#include "check.h"
#include "cpu/exchange.h"
#include "mask_problem.h"
#include "orders.h"

using namespace data;

template <class G>
static void check_view() {
  const MaskProblem<G> problem(1);
  const int64_t chunks = int64_t(problem.layout.chunks.size());
  Matrix<G> expected(1, problem.layout);
  kernels().mask(problem.view(expected), 0, chunks);
  for_orders([&] {
    Matrix<G> out(1, problem.layout);
    check_launched(cuda::mask(problem.view(out), extent_of(problem.layout), nullptr));
    CHECK_EQUAL(out.bytes(), expected.bytes());
  });
}

template <class G>
static void check_scores(int64_t tasks) {
  const MaskProblem<G> problem(tasks);
  const int64_t chunks = int64_t(problem.layout.chunks.size());
  for (const bool dense : {false, true}) {
    Matrix<float> expected(tasks, problem.layout);
    kernels().harmony(problem.scored(expected, problem.both.all().front(), dense), 0, chunks);
    for_orders([&] {
      for (const Gradients& where : problem.both.all()) {
        Matrix<float> scores(tasks, problem.layout);
        check_launched(cuda::harmony(problem.scored(scores, where, dense), extent_of(problem.layout), nullptr));
        CHECK_EQUAL(scores.bytes(), expected.bytes());
      }
    });
  }
}

TEST(views) { check_view<float>(), check_view<double>(), check_view<bfloat16>(), check_view<float16>(); }
TEST(scores) { check_scores<float>(3), check_scores<double>(2), check_scores<bfloat16>(1), check_scores<float16>(5); }

TEST(exchanges) {
  for (const int64_t amount : {0, 1, 37, 100000}) {
    ExchangeProblem expected(3);
    for (int64_t task = 0; task < 3; ++task) cpu::exchange(expected.arguments(amount), task);
    for_orders([&] {
      ExchangeProblem problem(3);
      check_launched(cuda::exchange(problem.arguments(amount), nullptr));
      CHECK_EQUAL(problem.masks, expected.masks);
    });
  }
}
