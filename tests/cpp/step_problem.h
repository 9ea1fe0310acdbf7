// Random problems for the fused step, in the middle of a run: some segments of row 1 take no part in it.
#pragma once
#include "packed.h"

namespace data {

struct StepCase {
  int64_t rows, tasks;
  Rule rule;
  bool mixed;
  Order order;
  bool masked = false;
};

// What a step changes.
template <class S>
struct StepState {
  Matrix<S> theta, moments[max_moments], ema;
  Matrix<bfloat16> low;
  Bytes bytes() const {
    Bytes all = low.bytes();
    for (const Matrix<S>* m : {&theta, &moments[0], &moments[1], &moments[2], &ema}) {
      const Bytes more = m->bytes();
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }
};

template <class S, class G>
struct StepProblem {
  static constexpr double grad_scale = 4.;
  StepCase of;
  Layout layout = plan_layout(numels);
  int64_t segments = int64_t(numels.size()), number = 1;  // of the step
  Random random;
  std::vector<double> fields, weights, mixes;
  std::vector<StepConstants> constants;
  std::vector<uint8_t> masks;  // [T][row / 8]
  std::unique_ptr<bool[]> whole;
  Matrix<G> grads;
  BothWays<G> both;
  StepState<S> start;

  StepProblem(const StepCase& of, int64_t number)
      : of(of),
        number(number),
        weights(random.weights(of.rows * of.tasks)),
        grads(with_some_missing(random.matrix<G>(of.rows * of.tasks, layout, grad_scale))),
        both(grads, of.tasks, layout),
        start{random.matrix<S>(of.rows, layout),
              {random.matrix<S>(of.rows, layout), squares(), squares()},
              random.matrix<S>(of.rows, layout),
              random.matrix<bfloat16>(of.rows, layout)} {
    fields.resize(segments * num_fields);
    for (int64_t segment = 0; segment < segments; ++segment) {
      double* field = fields.data() + segment * num_fields;
      field[field_lr] = 0.01 * double(segment + 1), field[field_weight_decay] = 0.1,
      field[field_decoupled] = segment % 2;
      field[field_beta1] = 0.9, field[field_beta2] = 0.999, field[field_eps] = 1e-8, field[field_dampening] = 0.25;
      field[field_nesterov] = segment == 2, field[field_maximize] = segment == 3, field[field_amsgrad] = segment != 1;
      field[field_transfer] = segment != 1, field[field_ema] = 0.99;
      const std::vector<double> mix = random.mix(of.rows, segment == 4);
      mixes.insert(mixes.end(), mix.begin(), mix.end());
    }
    for (int64_t i = 0; i < of.tasks * layout.row / 8; ++i) masks.push_back(uint8_t(256. * random.uniform()));
    whole.reset(new bool[segments]);
    for (int64_t segment = 0; segment < segments; ++segment) whole[segment] = segment == 2;
    for (int64_t k = 0; k < of.rows; ++k)
      for (int64_t segment = 0; segment < segments; ++segment) {
        constants.push_back(step_constants(fields.data() + segment * num_fields, of.rule, number, grad_scale));
        if (!active(k, segment)) constants.back().active = 0.;
      }
  }
  Matrix<G> with_some_missing(Matrix<G> m) const {
    set_some_to_zero(m, layout);
    return m;
  }
  Matrix<S> squares() {
    Matrix<S> m = random.matrix<S>(of.rows, layout);
    for (S& x : m.values) x *= x;
    return m;
  }
  static bool active(int64_t k, int64_t segment) { return k != 1 || segment % 2 != 0; }
  const StepConstants& at(int64_t k, const Chunk& c) const { return constants[k * segments + c.segment]; }

  // Whether the mask of task t has column p; whether that of any task does.
  bool has(int64_t t, int64_t p) const { return !of.masked || (masks[t * layout.row / 8 + p / 8] >> (p % 8) & 1) != 0; }
  bool moves(int64_t p) const {
    for (int64_t t = 0; t < of.tasks; ++t)
      if (has(t, p)) return true;
    return false;
  }

  // Without a mix.
  Step arguments(StepState<S>& state) const {
    Step s = {};
    s.rows = of.rows, s.tasks = of.tasks, s.segments = segments;
    s.rule = of.rule, s.order = of.order, s.type = type_of<S>;
    s.theta = state.theta.values.data(), s.row = state.theta.row, s.ema = state.ema.values.data();
    for (int j = 0; j < num_moments(of.rule); ++j) s.moments[j] = state.moments[j].values.data();
    if (std::is_same_v<S, float>)
      s.low_precision = state.low.values.data(), s.low_type = Type::bfloat16, s.low_row = state.low.row;
    s.grads = both.all().front();
    s.weights = weights.data(), s.constants = constants.data();
    s.chunks = layout.chunks.data();
    if (of.masked) s.masks = {masks.data(), layout.row / 8, whole.get(), of.tasks % 2 == 0};
    return s;
  }
  StepState<S> run(const Kernels& level, int threads, int64_t tile, const Gradients& where) const {
    StepState<S> state = start;
    const Packed<S> packed(mixes, of.rows);
    Step s = arguments(state);
    if (of.mixed) s.mix = packed.mix();
    s.grads = where, s.tile = tile;
    with_threads(threads, layout, [&](int64_t begin, int64_t end) { level.step(s, begin, end); });
    return state;
  }
};

}  // namespace data
