// The arguments of `combine`, checked.
#pragma once
#include "gradients.h"

namespace mt2o::ops {

inline Combine combine_arguments(const Tensor& out, const Tensor& grads, const Tensor& weights,
                                 const MaybeTensor& addresses) {
  Combine s = {};
  s.grads = gradients_of(grads, "grads", addresses);
  check_rows(out, "out", 2);
  s.rows = grads.size(0), s.tasks = grads.size(1);
  check_table(weights, "weights", ScalarType::Double, {s.rows, s.tasks});
  s.out_type = type_of(out, "out");
  STD_TORCH_CHECK(out.size(0) == s.rows && out.size(1) == grads.size(2),
                  "mt2o_ext: out must be [K, P] where grads are [K, T, P]");
  STD_TORCH_CHECK(s.out_type == s.grads.type || (s.out_type == Type::float32 && s.grads.type != Type::float64),
                  "mt2o_ext: out must have the dtype of grads, or float32 where grads have 16 bits");
  STD_TORCH_CHECK(s.tasks >= 1 && s.tasks <= max_tasks, "mt2o_ext: 1 to ", max_tasks, " tasks, not ", s.tasks);
  s.out = out.mutable_data_ptr(), s.out_row = out.stride(0);
  s.weights = const_data<double>(weights);
  return s;
}

}  // namespace mt2o::ops
