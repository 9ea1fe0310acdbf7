#include "finite.h"

#include "../cpu/dispatch.h"

namespace mt2o::ops {

void finite_(Tensor found_inf, Tensor grads, Tensor chunks, MaybeTensor addresses) {
  const Kernels& level = kernels();
  Finite s = finite_arguments(found_inf, grads, addresses);
  check_addresses(s.grads, addresses);
  const Chunks all = chunks_of(chunks, segments_of(addresses), grads.size(2));
  s.chunks = all.data;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.finite(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("finite_", TORCH_BOX(&mt2o::ops::finite_)); }
