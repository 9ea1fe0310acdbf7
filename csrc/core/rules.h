// The base rules, for one element of one row.  Each is a struct in rules/:
//   moments          how many of exp_avg, exp_avg_sq and max_exp_avg_sq it has, the first ones;
//   enum             names of its constants, at most max_rule_constants;
//   constants(c, f)  works them out from the fields of a segment and the number of the step;
//   update(c, g, m)  its formula: advances the moments m and returns what is added to the parameter, but for the decay.
// MT2O_RULES in arguments.h lists them; the loops of the CPU and of CUDA are written for any of them.
#pragma once
#include "rules/adam.h"
#include "rules/lion.h"
#include "rules/sgd.h"

namespace mt2o {

// f(R{}) with the struct R of a rule.
template <class F>
MT2O_HD void with_rule(Rule rule, F f) {
  switch (rule) {
#define MT2O_CASE(name, R) \
  case Rule::name: return f(R{});
    MT2O_RULES(MT2O_CASE)
#undef MT2O_CASE
  }
  __builtin_unreachable();  // without it, nvcc spends registers on the case that there is no such rule
}

MT2O_HD int num_moments(Rule rule) {
  int count = 0;
  with_rule(rule, [&](auto of) { count = decltype(of)::moments; });
  return count;
}

// Constants of step number `step` (1 for the first) from one row of `segments`.
MT2O_HD StepConstants step_constants(const double* field, Rule rule, int64_t step, double grad_scale) {
  StepConstants c = {};
  const bool decoupled = field[field_decoupled] != 0.;
  c.active = 1.;
  c.transfer = field[field_transfer];
  c.gradient = (field[field_maximize] != 0. ? -1. : 1.) / grad_scale;
  c.coupled = decoupled ? 0. : field[field_weight_decay];
  c.decay = decoupled ? -field[field_lr] * field[field_weight_decay] : 0.;
  c.average = 1. - field[field_ema];
  with_rule(rule, [&](auto of) { decltype(of)::constants(c.of_rule, field, step); });
  return c;
}

// Counts the step of one row and segment, if it takes part, and works out its constants: all there is to decide, before
// the first parameter is touched.
MT2O_HD void advance_counter(const StepCounters& s, int64_t row, int64_t segment) {
  const int64_t at = row * s.segments + segment;
  const bool skipped = s.found_inf && s.found_inf[row * s.found_stride] != 0.f;
  const bool active = !skipped && (!s.active || s.active[at]);
  if (active) s.step[at] += 1.f;
  const double grad_scale = s.grad_scale ? double(*s.grad_scale) : 1.;
  StepConstants constants = step_constants(s.fields + segment * num_fields, s.rule, int64_t(s.step[at]), grad_scale);
  constants.active = active ? 1. : 0.;
  s.constants[at] = constants;
}

// What is added to the parameter x.  g: combined gradient; moments: advanced in place.
template <class R, class N>
MT2O_HD N update(const RowConstants<N>& c, N g, N x, N* moments) {
  return fma(c.decay, x, R::update(c.of_rule, fma(c.coupled, x, c.gradient * g), moments));
}

// The running average of a parameter, now at x.
template <class N>
MT2O_HD N averaged(N gain, N x, N average) {
  return fma(gain, x - average, average);
}

}  // namespace mt2o
