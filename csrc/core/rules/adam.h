// Adam (Kingma & Ba, ICLR 2015) and AMSGrad (Reddi et al., ICLR 2018).  With decoupled decay it is AdamW (Loshchilov &
// Hutter, ICLR 2019).  Details as in torch.optim's documentation.
#pragma once
#include "rule.h"

namespace mt2o {

struct Adam {
  static constexpr int moments = 2;
  enum { size, keep1, gain1, keep2, gain2, root, eps, end };
  MT2O_HD void constants(double* c, const double* field, int64_t step) {
    const double beta1 = field[field_beta1], beta2 = field[field_beta2];
    c[size] = -field[field_lr] / (1. - power(beta1, step));
    c[keep1] = beta1, c[gain1] = 1. - beta1;
    c[keep2] = beta2, c[gain2] = 1. - beta2;
    c[root] = 1. / sqrt(1. - power(beta2, step));
    c[eps] = field[field_eps];
  }
  template <class N>
  MT2O_HD void advance(const N* c, N g, N* moments) {
    N &m = moments[0], &v = moments[1];
    m = fma(c[keep1], m, c[gain1] * g);
    v = fma(c[keep2], v, c[gain2] * g * g);
  }
  template <class N>
  MT2O_HD N adapted(const N* c, N m, N v) {
    return c[size] * m / fma(sqrt(v), c[root], c[eps]);
  }
  template <class N>
  MT2O_HD N update(const N* c, N g, N* moments) {
    advance(c, g, moments);
    return adapted(c, moments[0], moments[1]);
  }
};

struct AmsGrad {
  static constexpr int moments = 3;
  enum { kept = Adam::end };  // 1 where the maximum is kept: some groups may be Adam
  MT2O_HD void constants(double* c, const double* field, int64_t step) {
    Adam::constants(c, field, step);
    c[kept] = field[field_amsgrad] != 0. ? 1. : 0.;
  }
  template <class N>
  MT2O_HD N update(const N* c, N g, N* moments) {
    Adam::advance(c, g, moments);
    N& top = moments[2];
    top = max(c[kept] * top, moments[1]);
    return Adam::adapted(c, moments[0], top);
  }
};

}  // namespace mt2o
