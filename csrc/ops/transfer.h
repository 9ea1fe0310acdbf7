// The arguments of `transfer`, checked, but for the mix, which each backend takes in its own form.
#pragma once
#include "tensors.h"

namespace mt2o::ops {

inline Transfer transfer_arguments(const Tensor& theta) {
  check_rows(theta, "theta", 2);
  Transfer s = {};
  s.rows = theta.size(0), s.type = type_of(theta, "theta");
  STD_TORCH_CHECK(s.type == Type::float32 || s.type == Type::float64, "mt2o_ext: theta must be float32 or float64");
  STD_TORCH_CHECK(s.rows >= 1 && s.rows <= max_rows, "mt2o_ext: 1 to ", max_rows, " rows, not ", s.rows);
  s.theta = theta.mutable_data_ptr(), s.row = theta.stride(0);
  return s;
}

}  // namespace mt2o::ops
