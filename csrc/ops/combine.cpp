#include "../cpu/dispatch.h"
#include "tensors.h"

namespace mt2o::ops {

void combine_(Tensor out, Tensor grads, Tensor weights, Tensor chunks) {
  const Kernels& level = kernels();
  check_rows(grads, "grads", 3);
  check_rows(out, "out", 2);
  Combine s = {};
  s.rows = grads.size(0), s.tasks = grads.size(1);
  check_table(weights, "weights", ScalarType::Double, {s.rows, s.tasks});
  s.grads_type = type_of(grads, "grads"), s.out_type = type_of(out, "out");
  STD_TORCH_CHECK(out.size(0) == s.rows && out.size(1) == grads.size(2),
                  "mt2o_ext: out must be [K, P] where grads are [K, T, P]");
  STD_TORCH_CHECK(s.out_type == s.grads_type || (s.out_type == Type::float32 && s.grads_type != Type::float64),
                  "mt2o_ext: out must have the dtype of grads, or float32 where grads have 16 bits");
  STD_TORCH_CHECK(s.tasks >= 1 && s.tasks <= max_tasks, "mt2o_ext: 1 to ", max_tasks, " tasks, not ", s.tasks);
  s.grads = grads.const_data_ptr(), s.grads_row = grads.stride(0), s.grads_task = grads.stride(1);
  s.out = out.mutable_data_ptr(), s.out_row = out.stride(0);
  s.weights = const_data<double>(weights);
  const Chunks all = chunks_of(chunks, -1, out.size(1));
  s.chunks = all.data;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.combine(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("combine_", TORCH_BOX(&mt2o::ops::combine_)); }
