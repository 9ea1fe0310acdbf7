// The emulated fused step: the bits of the CPU's, in parameters, moments and constants.
#include "check.h"
#include "orders.h"
#include "step_problem.h"

using namespace data;

// What decides who takes part, as the device reads it.
struct Counters {
  std::vector<float> step;
  std::unique_ptr<bool[]> active;
  std::vector<StepConstants> constants;
  float grad_scale;

  template <class S, class G>
  explicit Counters(const StepProblem<S, G>& problem)
      : step(problem.constants.size()),
        active(new bool[problem.constants.size()]),
        constants(problem.constants.size()),
        grad_scale(float(problem.grad_scale)) {
    for (size_t at = 0; at < step.size(); ++at) {
      active[at] = problem.active(int64_t(at) / problem.segments, int64_t(at) % problem.segments);
      step[at] = float(problem.number - (active[at] ? 1 : 0));
    }
  }
};

template <class S, class G>
static void check_step(const StepCase& of) {
  const int64_t number = 3;
  const StepProblem<S, G> problem(of, number);
  const Bytes expected = problem.run(kernels(), 1, step_tile, problem.both.all().front()).bytes();
  const auto check = [&](const Gradients& where) {
    StepState<S> state = problem.start;
    Counters counters(problem);
    Step s = problem.arguments(state);
    s.grads = where, s.constants = counters.constants.data();
    const StepCounters c = {of.rows,
                            problem.segments,
                            of.rule,
                            problem.fields.data(),
                            counters.active.get(),
                            nullptr,
                            0,
                            &counters.grad_scale,
                            counters.step.data(),
                            counters.constants.data()};
    const cuda::Problem said =
        cuda::step(s, c, {of.mixed ? problem.segments : 0, of.mixed ? problem.mixes.data() : nullptr},
                   extent_of(problem.layout), nullptr);
    check_launched(said);
    CHECK_EQUAL(state.bytes(), expected);
    CHECK_EQUAL(counters.step, std::vector<float>(counters.step.size(), float(number)));
    CHECK(std::memcmp(counters.constants.data(), problem.constants.data(),
                      counters.constants.size() * sizeof(StepConstants)) == 0);
  };
  for_orders([&] {
    for (const Gradients& where : problem.both.all()) check(where);
  });
}

// Each rule without a mix, with one, and in the other order.
static void check_rule(Rule rule) {
  check_step<float, float>({5, 2, rule, false, Order::consensus});
  check_step<float, float>({5, 2, rule, true, Order::consensus});
  check_step<float, float>({3, 1, rule, true, Order::adapt_then_combine});
  check_step<double, double>({3, 1, rule, true, Order::consensus});
  check_step<float, float>({2, 3, rule, false, Order::consensus, true});
  check_step<double, double>({1, 2, rule, false, Order::consensus, true});
}

#define EACH_RULE(name, R) \
  TEST(name) { check_rule(Rule::name); }
MT2O_RULES(EACH_RULE)

// One number of rows for each kernel that is compiled.
TEST(rows) {
  for (const int64_t rows : {1, 2, 4, 16, 18}) check_step<float, float>({rows, 1, Rule::adam, true, Order::consensus});
  check_step<float, float>({17, 2, Rule::sgd, true, Order::adapt_then_combine});
}
TEST(gradients_of_sixteen_bits) {
  for (const bool mixed : {false, true}) {
    check_step<float, bfloat16>({3, 2, Rule::adam, mixed, Order::consensus});
    check_step<float, float16>({3, 2, Rule::adam, mixed, Order::consensus});
  }
  check_step<float, bfloat16>({3, 6, Rule::adam, false, Order::consensus, true});
}

// A row whose gradients are not finite: nothing of it moves.
TEST(skips_a_row_that_is_not_finite) {
  const StepProblem<float, float> problem({3, 1, Rule::adam, false, Order::consensus}, 1);
  StepState<float> state = problem.start;
  Counters counters(problem);
  const std::vector<float> found = {0.f, 0.f, 1.f}, before = counters.step;
  Step s = problem.arguments(state);
  s.constants = counters.constants.data();
  const StepCounters c = {3, problem.segments, Rule::adam,           problem.fields.data(),    nullptr, found.data(),
                          1, nullptr,          counters.step.data(), counters.constants.data()};
  check_launched(cuda::step(s, c, {}, extent_of(problem.layout), nullptr));
  for (int64_t segment = 0; segment < problem.segments; ++segment) {
    const int64_t at = 2 * problem.segments + segment;
    CHECK_EQUAL(counters.step[at], before[at]);
    CHECK_EQUAL(counters.step[at - problem.segments], before[at - problem.segments] + 1.f);
  }
  for (const Chunk& chunk : problem.layout.chunks)
    for (int64_t p = chunk.begin; p < chunk.end; ++p) CHECK_EQUAL(state.theta[2][p], problem.start.theta[2][p]);
  CHECK(state.theta[0][0] != problem.start.theta[0][0]);
}
