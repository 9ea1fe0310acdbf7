// Lion (Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023, arXiv 2302.06675, Algorithm 2).
#pragma once
#include "rule.h"

namespace mt2o {

struct Lion {
  static constexpr int moments = 1;
  enum { size, keep, gain, through, direct };
  MT2O_HD void constants(double* c, const double* field, int64_t) {
    const double beta1 = field[field_beta1], beta2 = field[field_beta2];
    c[size] = -field[field_lr];
    c[keep] = beta2, c[gain] = 1. - beta2;
    c[through] = beta1, c[direct] = 1. - beta1;
  }
  template <class N>
  MT2O_HD N update(const N* c, N g, N* moments) {
    N& m = moments[0];
    const N u = sign(fma(c[through], m, c[direct] * g));
    m = fma(c[keep], m, c[gain] * g);
    return c[size] * u;
  }
};

}  // namespace mt2o
