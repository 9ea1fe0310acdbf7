// Stochastic gradient descent, plain and with momentum (plain or Nesterov).  Source: torch.optim.SGD's documentation.
#pragma once
#include "rule.h"

namespace mt2o {

struct Sgd {
  static constexpr int moments = 0;
  enum { size };
  MT2O_HD void constants(double* c, const double* field, int64_t) { c[size] = -field[field_lr]; }
  template <class N>
  MT2O_HD N update(const N* c, N g, N*) {
    return c[size] * g;
  }
};

struct Momentum {
  static constexpr int moments = 1;
  enum { size, keep, gain, direct, through };
  MT2O_HD void constants(double* c, const double* field, int64_t step) {
    const double momentum = field[field_beta1];
    const bool first = step == 1, nesterov = field[field_nesterov] != 0.;
    c[size] = -field[field_lr];
    c[keep] = first ? 0. : momentum;  // torch.optim.SGD begins with the gradient itself, undampened
    c[gain] = first || momentum == 0. ? 1. : 1. - field[field_dampening];
    c[direct] = nesterov ? 1. : 0.;
    c[through] = nesterov ? momentum : 1.;
  }
  template <class N>
  MT2O_HD N update(const N* c, N g, N* moments) {
    N& m = moments[0];
    m = fma(c[keep], m, c[gain] * g);
    return c[size] * fma(c[through], m, c[direct] * g);
  }
};

}  // namespace mt2o
