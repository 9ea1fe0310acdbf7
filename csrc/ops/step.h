// The arguments of `step`, checked, but for the mix, which each backend takes in its own form.
#pragma once
#include "../core/rules.h"
#include "gradients.h"
#include "mask.h"

namespace mt2o::ops {

// As the operator is given them.
struct StepTensors {
  Tensor theta;
  MaybeTensor exp_avg, exp_avg_sq, max_exp_avg_sq, ema, low_precision;
  Tensor step, constants, grads;
  MaybeTensor weights, mix;
  Tensor segments, chunks;
  MaybeTensor active, grad_scale, found_inf, addresses, masks, whole;
  int64_t rule, order;
  bool hold;
};

inline void* like_theta(const MaybeTensor& t, const Tensor& theta, const char* name, bool needed) {
  STD_TORCH_CHECK(t.has_value() || !needed, "mt2o_ext: this rule needs ", name);
  if (!t.has_value()) return nullptr;
  check_same(*t, theta, name, "theta");
  return t->mutable_data_ptr();
}

inline void check_low_precision(const Tensor& low, const Step& s, int64_t columns) {
  check_rows(low, "low_precision", 2);
  const Type type = type_of(low, "low_precision");
  STD_TORCH_CHECK((type == Type::bfloat16 || type == Type::float16) && s.type == Type::float32 &&
                      low.size(0) == s.rows && low.size(1) == columns,
                  "mt2o_ext: low_precision must be bfloat16 or float16 of the shape of a float32 theta");
}

// All but the chunks and the mix.
inline Step step_arguments(const StepTensors& t) {
  check_rows(t.theta, "theta", 2);
  STD_TORCH_CHECK(t.rule >= 0 && t.rule < num_rules && t.order >= 0 && t.order <= 1, "mt2o_ext: unknown rule or order");
  Step s = {};
  s.grads = gradients_of(t.grads, "grads", t.addresses, t.addresses.has_value() ? t.segments.size(0) : -1);
  s.rows = t.theta.size(0), s.tasks = t.grads.size(1), s.segments = t.segments.size(0);
  s.rule = Rule(t.rule), s.order = Order(t.order);
  s.type = type_of(t.theta, "theta");
  STD_TORCH_CHECK(s.type == Type::float32 || s.type == Type::float64, "mt2o_ext: theta must be float32 or float64");
  STD_TORCH_CHECK((s.type == Type::float64) == (s.grads.type == Type::float64),
                  "mt2o_ext: float64 grads belong to float64 theta");
  STD_TORCH_CHECK(s.rows >= 1 && s.rows <= max_rows, "mt2o_ext: 1 to ", max_rows, " rows, not ", s.rows);
  STD_TORCH_CHECK(s.tasks >= 1 && s.tasks <= max_tasks, "mt2o_ext: 1 to ", max_tasks, " tasks, not ", s.tasks);
  STD_TORCH_CHECK(t.grads.size(0) == s.rows && t.grads.size(2) == t.theta.size(1),
                  "mt2o_ext: grads must be [K, T, P] where theta is [K, P]");
  if (t.weights.has_value()) check_table(*t.weights, "weights", ScalarType::Double, {s.rows, s.tasks});
  STD_TORCH_CHECK(t.weights.has_value() || s.tasks == 1, "mt2o_ext: gradients of several tasks need weights");
  s.theta = t.theta.mutable_data_ptr(), s.row = t.theta.stride(0);
  const MaybeTensor* moments[max_moments] = {&t.exp_avg, &t.exp_avg_sq, &t.max_exp_avg_sq};
  for (int j = 0; j < max_moments; ++j)
    s.moments[j] = like_theta(*moments[j], t.theta, moment_names[j], j < num_moments(s.rule));
  s.ema = like_theta(t.ema, t.theta, "ema", false);
  if (const MaybeTensor& low = t.low_precision; low.has_value()) {
    check_low_precision(*low, s, t.theta.size(1));
    s.low_type = type_of(*low, "low_precision");
    s.low_precision = low->mutable_data_ptr(), s.low_row = low->stride(0);
  }
  s.weights = t.weights.has_value() ? const_data<double>(*t.weights) : nullptr;
  if (t.masks.has_value()) {
    STD_TORCH_CHECK(!t.mix.has_value(), "mt2o_ext: rows with masks are not blended: leave out mix or masks");
    s.masks = masks_of(*t.masks, t.whole, s.tasks, t.theta.size(1), s.segments);
    s.masks.hold = t.hold;
  }
  s.tile = step_tile;
  return s;
}

// The counters, and the constants that the step is given to read.
inline StepCounters step_counters(const StepTensors& t, Step& s) {
  check_table(t.segments, "segments", ScalarType::Double, {s.segments, num_fields});
  check_table(t.step, "step", ScalarType::Float, {s.rows, s.segments});
  check_table(t.constants, "constants", ScalarType::Double, {s.rows, s.segments, num_constants});
  if (t.active.has_value()) check_table(*t.active, "active", ScalarType::Bool, {s.rows, s.segments});
  if (t.grad_scale.has_value())
    STD_TORCH_CHECK(t.grad_scale->numel() == 1 && t.grad_scale->scalar_type() == ScalarType::Float,
                    "mt2o_ext: grad_scale must be one float32");
  const bool found = t.found_inf.has_value();
  if (found)
    STD_TORCH_CHECK((t.found_inf->numel() == 1 || t.found_inf->numel() == s.rows) && t.found_inf->is_contiguous() &&
                        t.found_inf->scalar_type() == ScalarType::Float,
                    "mt2o_ext: found_inf must be float32, [1] or [K]");
  StepCounters counters = {};
  counters.rows = s.rows, counters.segments = s.segments, counters.rule = s.rule;
  counters.fields = const_data<double>(t.segments);
  counters.active = t.active.has_value() ? const_data<bool>(*t.active) : nullptr;
  counters.found_inf = found ? const_data<float>(*t.found_inf) : nullptr;
  counters.found_stride = found && t.found_inf->numel() > 1 ? 1 : 0;
  counters.grad_scale = t.grad_scale.has_value() ? const_data<float>(*t.grad_scale) : nullptr;
  counters.step = data<float>(t.step);
  counters.constants = data<StepConstants>(t.constants);
  s.constants = counters.constants;
  return counters;
}

}  // namespace mt2o::ops
