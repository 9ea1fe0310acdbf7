// The arguments of `finite`, checked.
#pragma once
#include "gradients.h"

namespace mt2o::ops {

inline Finite finite_arguments(const Tensor& found_inf, const Tensor& grads, const MaybeTensor& addresses) {
  Finite s = {};
  s.grads = gradients_of(grads, "grads", addresses);
  s.rows = grads.size(0), s.tasks = grads.size(1);
  check_table(found_inf, "found_inf", ScalarType::Float, {s.rows});
  s.found = data<float>(found_inf);
  return s;
}

}  // namespace mt2o::ops
