// The arguments of `finite`, checked.
#pragma once
#include "tensors.h"

namespace mt2o::ops {

inline Finite finite_arguments(const Tensor& found_inf, const Tensor& grads) {
  check_rows(grads, "grads", 3);
  Finite s = {};
  s.rows = grads.size(0), s.tasks = grads.size(1);
  check_table(found_inf, "found_inf", ScalarType::Float, {s.rows});
  s.grads = grads.const_data_ptr(), s.grads_type = type_of(grads, "grads");
  s.grads_row = grads.stride(0), s.grads_task = grads.stride(1);
  s.found = data<float>(found_inf);
  return s;
}

}  // namespace mt2o::ops
