// What the base rules share: the columns of the table of hyper-parameters, and the constants that the loops read, which
// are worked out in double once for each row and segment: 1.f - beta2 in float would be wrong by 1e-8, and exp_avg_sq
// by 1e-6.
#pragma once
#include "../arguments.h"

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

constexpr int max_rule_constants = 8;

struct StepConstants {
  double active;                       // 0: nothing of this row and segment is touched
  double transfer;                     // 0: not blended
  double average;                      // 1 - decay of the running average
  double gradient;                     // factor of the combined gradient: sign (maximize) and 1 / grad_scale
  double coupled, decay;               // weight decay: of the gradient, or of the parameter (-lr * weight decay)
  double of_rule[max_rule_constants];  // by the names that a rule gives them; shared, as a thread has few registers
};
constexpr int num_constants = sizeof(StepConstants) / sizeof(double);

// Those that the formulas read, in the number type of the loops.
template <class N>
struct RowConstants {
  N gradient, coupled, decay, of_rule[max_rule_constants];
};
template <class N, class Broadcast>
MT2O_HD RowConstants<N> row_constants(const StepConstants& c, Broadcast all) {
  const double* r = c.of_rule;
  return {all(c.gradient),
          all(c.coupled),
          all(c.decay),
          {all(r[0]), all(r[1]), all(r[2]), all(r[3]), all(r[4]), all(r[5]), all(r[6]), all(r[7])}};
}

// base^n by repeated squaring: the same bits on every device, which pow does not promise.
MT2O_HD double power(double base, int64_t n) {
  double result = 1.;
  for (; n > 0; n >>= 1, base *= base)
    if (n & 1) result *= base;
  return result;
}

}  // namespace mt2o
