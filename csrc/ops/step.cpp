#include "../core/rules.h"

#include "../cpu/dispatch.h"
#include "mix.h"

namespace mt2o::ops {

struct Flags {
  const bool* active;      // [K][S], or nullptr
  const float* found_inf;  // [K] or [1], or nullptr
  int64_t found_stride;    // 1 or 0
  double grad_scale;
};

// Counts the steps of all rows and segments that take part and works out their constants: all there is to decide,
// before the first parameter is touched.
static void advance_counters(const Flags& flags, const double* segments, Rule rule, int64_t rows, int64_t num_segments,
                             float* step, StepConstants* constants) {
  for (int64_t k = 0; k < rows; ++k) {
    const bool skipped = flags.found_inf && flags.found_inf[k * flags.found_stride] != 0.f;
    for (int64_t segment = 0; segment < num_segments; ++segment) {
      const int64_t at = k * num_segments + segment;
      const double* fields = segments + segment * num_fields;
      const bool active = !skipped && (!flags.active || flags.active[at]);
      if (active) step[at] += 1.f;
      constants[at] = step_constants(fields, rule, int64_t(step[at]), flags.grad_scale);
      constants[at].active = active;
    }
  }
}

static void* moment(const MaybeTensor& t, const Tensor& theta, const char* name, bool needed) {
  STD_TORCH_CHECK(t.has_value() || !needed, "mt2o_ext: this rule needs ", name);
  if (!t.has_value()) return nullptr;
  check_same(*t, theta, name, "theta");
  return t->mutable_data_ptr();
}

void step_(Tensor theta, MaybeTensor exp_avg, MaybeTensor exp_avg_sq, MaybeTensor max_exp_avg_sq, MaybeTensor ema,
           MaybeTensor low_precision, Tensor step, Tensor constants, Tensor grads, MaybeTensor weights, MaybeTensor mix,
           Tensor segments, Tensor chunks, MaybeTensor active, MaybeTensor grad_scale, MaybeTensor found_inf,
           int64_t rule, int64_t order) {
  const Kernels& level = kernels();
  check_rows(theta, "theta", 2);
  check_rows(grads, "grads", 3);
  STD_TORCH_CHECK(rule >= 0 && rule <= int64_t(Rule::amsgrad) && order >= 0 && order <= 1,
                  "mt2o_ext: unknown rule or order");
  Step s = {};
  s.rows = theta.size(0), s.tasks = grads.size(1), s.segments = segments.size(0);
  s.rule = Rule(rule), s.order = Order(order);
  s.type = type_of(theta, "theta"), s.grads_type = type_of(grads, "grads");
  STD_TORCH_CHECK(s.type == Type::float32 || s.type == Type::float64, "mt2o_ext: theta must be float32 or float64");
  STD_TORCH_CHECK((s.type == Type::float64) == (s.grads_type == Type::float64),
                  "mt2o_ext: float64 grads belong to float64 theta");
  STD_TORCH_CHECK(s.rows >= 1 && s.rows <= max_rows, "mt2o_ext: 1 to ", max_rows, " rows, not ", s.rows);
  STD_TORCH_CHECK(s.tasks >= 1 && s.tasks <= max_tasks, "mt2o_ext: 1 to ", max_tasks, " tasks, not ", s.tasks);
  STD_TORCH_CHECK(grads.size(0) == s.rows && grads.size(2) == theta.size(1),
                  "mt2o_ext: grads must be [K, T, P] where theta is [K, P]");
  check_table(segments, "segments", ScalarType::Double, {s.segments, num_fields});
  check_table(step, "step", ScalarType::Float, {s.rows, s.segments});
  check_table(constants, "constants", ScalarType::Double, {s.rows, s.segments, num_constants});
  if (weights.has_value()) check_table(*weights, "weights", ScalarType::Double, {s.rows, s.tasks});
  STD_TORCH_CHECK(weights.has_value() || s.tasks == 1, "mt2o_ext: gradients of several tasks need weights");
  if (active.has_value()) check_table(*active, "active", ScalarType::Bool, {s.rows, s.segments});
  if (grad_scale.has_value())
    STD_TORCH_CHECK(grad_scale->numel() == 1 && grad_scale->scalar_type() == ScalarType::Float,
                    "mt2o_ext: grad_scale must be one float32");
  if (found_inf.has_value())
    STD_TORCH_CHECK((found_inf->numel() == 1 || found_inf->numel() == s.rows) && found_inf->is_contiguous() &&
                        found_inf->scalar_type() == ScalarType::Float,
                    "mt2o_ext: found_inf must be float32, [1] or [K]");
  s.theta = theta.mutable_data_ptr(), s.row = theta.stride(0);
  s.exp_avg = moment(exp_avg, theta, "exp_avg", s.rule != Rule::sgd);
  s.exp_avg_sq = moment(exp_avg_sq, theta, "exp_avg_sq", s.rule == Rule::adam || s.rule == Rule::amsgrad);
  s.max_exp_avg_sq = moment(max_exp_avg_sq, theta, "max_exp_avg_sq", s.rule == Rule::amsgrad);
  s.ema = moment(ema, theta, "ema", false);
  if (low_precision.has_value()) {
    check_rows(*low_precision, "low_precision", 2);
    s.low_type = type_of(*low_precision, "low_precision");
    STD_TORCH_CHECK((s.low_type == Type::bfloat16 || s.low_type == Type::float16) && s.type == Type::float32 &&
                        low_precision->size(0) == s.rows && low_precision->size(1) == theta.size(1),
                    "mt2o_ext: low_precision must be bfloat16 or float16 of the shape of a float32 theta");
    s.low_precision = low_precision->mutable_data_ptr(), s.low_row = low_precision->stride(0);
  }
  s.grads = grads.const_data_ptr(), s.grads_row = grads.stride(0), s.grads_task = grads.stride(1);
  s.weights = weights.has_value() ? const_data<double>(*weights) : nullptr;
  const Chunks all = chunks_of(chunks, s.segments, theta.size(1));
  s.chunks = all.data, s.tile = step_tile;
  std::optional<MixBuffer> buffer;
  if (mix.has_value()) {
    buffer.emplace(*mix, s.rows, s.segments, s.type);
    s.mix = buffer->packed();
  }
  const Flags flags = {active.has_value() ? const_data<bool>(*active) : nullptr,
                       found_inf.has_value() ? const_data<float>(*found_inf) : nullptr,
                       found_inf.has_value() && found_inf->numel() > 1 ? 1 : 0,
                       grad_scale.has_value() ? *const_data<float>(*grad_scale) : 1.};
  s.constants = reinterpret_cast<const StepConstants*>(constants.const_data_ptr());
  advance_counters(flags, const_data<double>(segments), s.rule, s.rows, s.segments, data<float>(step),
                   reinterpret_cast<StepConstants*>(constants.mutable_data_ptr()));
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.step(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("step_", TORCH_BOX(&mt2o::ops::step_)); }
