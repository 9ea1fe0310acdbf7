#include "transfer.h"

#include "../cpu/dispatch.h"
#include "mix.h"

namespace mt2o::ops {

void transfer_(Tensor theta, Tensor mix, Tensor chunks) {
  const Kernels& level = kernels();
  Transfer s = transfer_arguments(theta);
  const MixBuffer buffer(mix, s.rows, -1, s.type);
  const Chunks all = chunks_of(chunks, mix.dim() == 3 ? buffer.matrices() : -1, theta.size(1));
  s.mix = buffer.packed();
  s.chunks = all.data, s.tile = step_tile;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.transfer(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("transfer_", TORCH_BOX(&mt2o::ops::transfer_)); }
