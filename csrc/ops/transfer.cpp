#include "../cpu/dispatch.h"
#include "mix.h"

namespace mt2o::ops {

void transfer_(Tensor theta, Tensor mix, Tensor chunks) {
  const Kernels& level = kernels();
  check_rows(theta, "theta", 2);
  Transfer s = {};
  s.rows = theta.size(0), s.type = type_of(theta, "theta");
  STD_TORCH_CHECK(s.type == Type::float32 || s.type == Type::float64, "mt2o_ext: theta must be float32 or float64");
  STD_TORCH_CHECK(s.rows >= 1 && s.rows <= max_rows, "mt2o_ext: 1 to ", max_rows, " rows, not ", s.rows);
  const MixBuffer buffer(mix, s.rows, -1, s.type);
  const Chunks all = chunks_of(chunks, mix.dim() == 3 ? buffer.matrices() : -1, theta.size(1));
  s.theta = theta.mutable_data_ptr(), s.row = theta.stride(0);
  s.mix = buffer.packed();
  s.chunks = all.data, s.tile = step_tile;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.transfer(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("transfer_", TORCH_BOX(&mt2o::ops::transfer_)); }
