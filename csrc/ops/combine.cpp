#include "combine.h"

#include "../cpu/dispatch.h"

namespace mt2o::ops {

void combine_(Tensor out, Tensor grads, Tensor weights, Tensor chunks, MaybeTensor addresses) {
  const Kernels& level = kernels();
  Combine s = combine_arguments(out, grads, weights, addresses);
  check_addresses(s.grads, addresses);
  const Chunks all = chunks_of(chunks, segments_of(addresses), out.size(1));
  s.chunks = all.data;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.combine(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("combine_", TORCH_BOX(&mt2o::ops::combine_)); }
