#include "../cpu/dispatch.h"
#include "tensors.h"

namespace mt2o::ops {

void finite_(Tensor found_inf, Tensor grads, Tensor chunks) {
  const Kernels& level = kernels();
  check_rows(grads, "grads", 3);
  Finite s = {};
  s.rows = grads.size(0), s.tasks = grads.size(1);
  check_table(found_inf, "found_inf", ScalarType::Float, {s.rows});
  s.grads = grads.const_data_ptr(), s.grads_type = type_of(grads, "grads");
  s.grads_row = grads.stride(0), s.grads_task = grads.stride(1);
  s.found = data<float>(found_inf);
  const Chunks all = chunks_of(chunks, -1, grads.size(2));
  s.chunks = all.data;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.finite(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("finite_", TORCH_BOX(&mt2o::ops::finite_)); }
