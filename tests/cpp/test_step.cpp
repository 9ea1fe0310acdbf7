// The fused step, against the textbook's formulas in double and against the scalar formulas of core/ bit for bit.
#include "check.h"
#include "step_problem.h"

using namespace data;

// One element by the textbook, in double.  Moments are advanced; the update is returned.
struct Element {
  double x, m, v, top;
};
static double textbook(Rule rule, const double* field, int64_t number, double g, Element& e) {
  const double lr = field[field_lr], beta1 = field[field_beta1], beta2 = field[field_beta2];
  if (field[field_maximize] != 0.) g = -g;
  double decay = 0.;
  if (field[field_decoupled] != 0.)
    decay = -lr * field[field_weight_decay] * e.x;
  else
    g += field[field_weight_decay] * e.x;
  if (rule == Rule::sgd) return decay - lr * g;
  if (rule == Rule::momentum) {
    e.m = number == 1 ? g : beta1 * e.m + (1. - field[field_dampening]) * g;
    return decay - lr * (field[field_nesterov] != 0. ? g + beta1 * e.m : e.m);
  }
  if (rule == Rule::lion) {
    const double d = beta1 * e.m + (1. - beta1) * g;
    e.m = beta2 * e.m + (1. - beta2) * g;
    return decay - lr * double((d > 0.) - (d < 0.));
  }
  e.m = beta1 * e.m + (1. - beta1) * g;
  e.v = beta2 * e.v + (1. - beta2) * g * g;
  e.top = field[field_amsgrad] != 0. ? std::max(e.top, e.v) : e.v;
  const double v = rule == Rule::amsgrad ? e.top : e.v;
  const double root = std::sqrt(v / (1. - std::pow(beta2, double(number)))) + field[field_eps];
  return decay - lr * e.m / (1. - std::pow(beta1, double(number))) / root;
}

template <class S, class G>
static void check_column(const StepProblem<S, G>& problem, const StepState<S>& got, const Chunk& c, int64_t p) {
  const StepCase& of = problem.of;
  const double* field = problem.fields.data() + c.segment * num_fields;
  const bool mixed = of.mixed && field[field_transfer] != 0.;
  std::vector<double> old(of.rows), update(of.rows, 0.);
  for (int64_t k = 0; k < of.rows; ++k) {
    old[k] = problem.start.theta.at(k, p);
    if (problem.at(k, c).active == 0.) continue;
    double g = 0., size = 1.;
    for (int64_t t = 0; t < of.tasks; ++t) {
      if (!problem.has(t, p) && !problem.whole[c.segment]) continue;
      const double term =
          problem.weights[k * of.tasks + t] * problem.grads.at(k * of.tasks + t, p) / problem.grad_scale;
      g += term, size += std::fabs(term);
    }
    const auto& start = problem.start.moments;
    Element e = {old[k], start[0].at(k, p), start[1].at(k, p), start[2].at(k, p)};
    update[k] = textbook(of.rule, field, problem.number, g, e);
    if (!problem.moves(p)) {
      update[k] = 0.;
      if (of.tasks % 2 == 0) e = {old[k], start[0].at(k, p), start[1].at(k, p), start[2].at(k, p)};  // held
    }
    const double tolerance = 4. * rounding<S> * double(of.tasks + 2) * size;
    const double exact[] = {e.m, e.v, e.top};  // of a first moment, and of two that average squares
    const double allowed[] = {tolerance, 0.001 * tolerance * size, 0.001 * tolerance * size};
    for (int j = 0; j < num_moments(of.rule); ++j)
      CHECK_NEAR(got.moments[j].at(k, p), exact[j], allowed[j] + (j ? 4. : 2.) * rounding<S> * std::fabs(exact[j]));
  }
  for (int64_t k = 0; k < of.rows; ++k) {
    if (problem.at(k, c).active == 0. || !problem.moves(p)) {
      CHECK(got.theta.at(k, p) == old[k] && got.ema.at(k, p) == problem.start.ema.at(k, p));
      CHECK_EQUAL(got.low[k][p].bits, problem.start.low[k][p].bits);
      continue;
    }
    const double* m = problem.mixes.data() + (c.segment * of.rows + k) * of.rows;
    double x = old[k] + update[k], size = 1. + std::fabs(old[k]) + std::fabs(update[k]);
    if (mixed) {
      x = of.order == Order::consensus ? update[k] : 0.;
      for (int64_t j = 0; j < of.rows; ++j) {
        const double from = of.order == Order::consensus ? old[j] : old[j] + update[j];
        x += m[j] * from, size += std::fabs(from);
      }
    }
    CHECK_NEAR(got.theta.at(k, p), x, 16. * rounding<S> * size);
    const double ema = problem.start.ema.at(k, p), average = ema + (1. - field[field_ema]) * (got.theta.at(k, p) - ema);
    CHECK_NEAR(got.ema.at(k, p), average, 4. * rounding<S> * (std::fabs(ema) + std::fabs(x)));
    if (std::is_same_v<S, float>) CHECK(got.low[k][p].bits == Rounded<bfloat16>::of(float(got.theta.at(k, p))).bits);
  }
}

template <class S, class G>
static void check_step(const StepCase& of, int64_t number) {
  const StepProblem<S, G> problem(of, number);
  Bytes first;
  for (const int64_t tile : {16, 2048})
    for_levels_and_threads([&](const Kernels& level, int threads) {
      for (const Gradients& where : problem.both.all()) {
        const StepState<S> state = problem.run(level, threads, tile, where);
        if (first.empty()) {
          first = state.bytes();
          for (const Chunk& c : problem.layout.chunks)
            for (int64_t p = c.begin; p < c.end; ++p) check_column(problem, state, c, p);
        }
        CHECK_EQUAL(state.bytes(), first);
      }
    });
}

// Without a mix, an element depends on nothing but itself: the same formula with a single number instead of sixteen.
template <class S>
static void check_scalar(const StepCase& of) {
  const StepProblem<S, S> problem(of, 3);
  const StepState<S> got = problem.run(kernels(), 1, 2048, problem.both.all().front());
  for (int64_t k = 0; k < of.rows; ++k)
    for (const Chunk& chunk : problem.layout.chunks) {
      if (problem.at(k, chunk).active == 0.) continue;
      const RowConstants<S> c = row_constants<S>(problem.at(k, chunk), [](double x) { return S(x); });
      for (int64_t p = chunk.begin; p < chunk.end; ++p) {
        const auto weight = [&](int64_t t) { return S(problem.weights[k * of.tasks + t]); };
        S g = weight(0) * problem.grads[k * of.tasks][p];
        for (int64_t t = 1; t < of.tasks; ++t) g = mt2o::fma(weight(t), problem.grads[k * of.tasks + t][p], g);
        S x = problem.start.theta[k][p], moments[max_moments];
        for (int j = 0; j < max_moments; ++j) moments[j] = problem.start.moments[j][k][p];
        with_rule(of.rule, [&](auto rule) { x = x + update<decltype(rule)>(c, g, x, moments); });
        CHECK_EQUAL(got.theta[k][p], x);
        for (int j = 0; j < max_moments; ++j) CHECK_EQUAL(got.moments[j][k][p], moments[j]);
      }
    }
}

template <class S, class G>
static void check_cases(Rule rule) {
  check_step<S, G>({1, 1, rule, false, Order::consensus}, 1);
  check_step<S, G>({5, 2, rule, false, Order::consensus}, 3);
  check_step<S, G>({1, 1, rule, false, Order::consensus, true}, 3);
  check_step<S, G>({2, 2, rule, false, Order::consensus, true}, 1);
  for (const Order order : {Order::consensus, Order::adapt_then_combine}) {
    check_step<S, G>({1, 3, rule, true, order}, 3);
    check_step<S, G>({6, 2, rule, true, order}, 1);
    check_step<S, G>({17, 1, rule, true, order}, 3);
  }
}

static void check_types(Rule rule) {
  check_cases<float, float>(rule);
  check_cases<double, double>(rule);
  check_step<float, bfloat16>({5, 2, rule, true, Order::consensus}, 3);
  check_step<float, float16>({5, 2, rule, true, Order::consensus}, 3);
  check_scalar<float>({5, 2, rule, false, Order::consensus});
  check_scalar<double>({5, 2, rule, false, Order::consensus});
}

#define EACH_RULE(name, R) \
  TEST(name) { check_types(Rule::name); }
MT2O_RULES(EACH_RULE)
