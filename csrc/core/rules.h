// The base rules (SGD, momentum, Adam, AMSGrad; with coupled or decoupled weight decay), for one element of one row,
// and the constants they need, worked out in double once for each row and segment: 1.f - beta2 in float would be wrong
// by 1e-8, and exp_avg_sq by 1e-6.
//
// Sources: torch.optim's documentation of SGD, Adam and AdamW; Kingma & Ba, ICLR 2015; Loshchilov & Hutter, ICLR 2019;
// Reddi et al., ICLR 2018 (AMSGrad).
#pragma once
#include "arguments.h"

namespace mt2o {

// Columns of the table `segments`, float64 [S, fields].  For SGD, beta1 is the momentum.
enum Field : int {
  field_lr,
  field_weight_decay,
  field_decoupled,  // 1: AdamW's decay, of the parameter; 0: of the gradient
  field_beta1,
  field_beta2,
  field_eps,
  field_dampening,
  field_nesterov,
  field_maximize,
  field_amsgrad,
  field_transfer,  // 0: these tensors are never blended
  field_ema,       // decay of the running average of the rows
  num_fields
};

struct StepConstants {
  double active;            // 0: nothing of this row and segment is touched
  double transfer;          // 0: not blended
  double gradient;          // factor of the combined gradient: sign (maximize) and 1 / grad_scale
  double coupled, decay;    // weight decay: of the gradient, or of the parameter (-lr * weight decay)
  double keep1, gain1;      // exp_avg <- keep1 exp_avg + gain1 g
  double keep2, gain2;      // exp_avg_sq <- keep2 exp_avg_sq + gain2 g g
  double direct, through;   // direction <- direct g + through exp_avg   (Nesterov)
  double size, root, eps;   // update <- size m / (root sqrt(v) + eps)
  double amsgrad, average;  // 1 where the maximum is kept; 1 - decay of the running average
};
constexpr int num_constants = sizeof(StepConstants) / sizeof(double);

// base^n by repeated squaring: the same bits on every device, which pow does not promise.
MT2O_HD double power(double base, int64_t n) {
  double result = 1.;
  for (; n > 0; n >>= 1, base *= base)
    if (n & 1) result *= base;
  return result;
}

// Constants of step number `step` (1 for the first) from one row of `segments`.
MT2O_HD StepConstants step_constants(const double* field, Rule rule, int64_t step, double grad_scale) {
  StepConstants c = {};
  const double lr = field[field_lr], decay = field[field_weight_decay], beta1 = field[field_beta1],
               beta2 = field[field_beta2];
  const bool decoupled = field[field_decoupled] != 0.;
  c.active = 1.;
  c.transfer = field[field_transfer];
  c.gradient = (field[field_maximize] != 0. ? -1. : 1.) / grad_scale;
  c.coupled = decoupled ? 0. : decay;
  c.decay = decoupled ? -lr * decay : 0.;
  c.average = 1. - field[field_ema];
  c.keep1 = beta1;
  c.through = 1.;
  if (rule == Rule::sgd || rule == Rule::momentum) {
    const bool nesterov = field[field_nesterov] != 0.;
    if (step == 1) c.keep1 = 0.;  // torch.optim.SGD begins with the gradient itself, undampened
    c.gain1 = step == 1 ? 1. : 1. - field[field_dampening];
    if (beta1 == 0.) c.gain1 = 1.;  // no momentum in this group
    c.direct = nesterov ? 1. : 0.;
    c.through = nesterov ? beta1 : 1.;
    c.size = -lr;
  } else {
    c.gain1 = 1. - beta1;
    c.keep2 = beta2;
    c.gain2 = 1. - beta2;
    c.size = -lr / (1. - power(beta1, step));
    c.root = 1. / sqrt(1. - power(beta2, step));
    c.eps = field[field_eps];
    c.amsgrad = field[field_amsgrad] != 0. ? 1. : 0.;
  }
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

// The same in the number type of the loops.
template <class N>
struct RowConstants {
  N gradient, coupled, decay, keep1, gain1, keep2, gain2, direct, through, size, root, eps, amsgrad;
};
template <class N, class Broadcast>
MT2O_HD RowConstants<N> row_constants(const StepConstants& c, Broadcast all) {
  return {all(c.gradient), all(c.coupled), all(c.decay), all(c.keep1), all(c.gain1), all(c.keep2),  all(c.gain2),
          all(c.direct),   all(c.through), all(c.size),  all(c.root),  all(c.eps),   all(c.amsgrad)};
}

// Each returns what is to be added to x.  g: combined gradient; x: parameter; m, v, top: moments, advanced in place.
template <class N>
MT2O_HD N decayed(const RowConstants<N>& c, N g, N x) {
  return fma(c.coupled, x, g);
}
template <class N>
MT2O_HD N sgd(const RowConstants<N>& c, N g, N x) {
  return fma(c.decay, x, c.size * decayed(c, g, x));
}
template <class N>
MT2O_HD N momentum(const RowConstants<N>& c, N g, N x, N& m) {
  g = decayed(c, g, x);
  m = fma(c.keep1, m, c.gain1 * g);
  return fma(c.decay, x, c.size * fma(c.through, m, c.direct * g));
}
template <class N>
MT2O_HD void advance_moments(const RowConstants<N>& c, N g, N& m, N& v) {
  m = fma(c.keep1, m, c.gain1 * g);
  v = fma(c.keep2, v, c.gain2 * g * g);
}
template <class N>
MT2O_HD N adaptive(const RowConstants<N>& c, N x, N m, N v) {
  return fma(c.decay, x, c.size * m / fma(sqrt(v), c.root, c.eps));
}
template <class N>
MT2O_HD N adam(const RowConstants<N>& c, N g, N x, N& m, N& v) {
  advance_moments(c, decayed(c, g, x), m, v);
  return adaptive(c, x, m, v);
}
template <class N>
MT2O_HD N amsgrad(const RowConstants<N>& c, N g, N x, N& m, N& v, N& top) {
  advance_moments(c, decayed(c, g, x), m, v);
  top = max(c.amsgrad * top, v);
  return adaptive(c, x, m, top);
}

// The running average of a parameter, now at x.
template <class N>
MT2O_HD N averaged(N gain, N x, N average) {
  return fma(gain, x - average, average);
}

}  // namespace mt2o
