#include "mask.h"

#include "../cpu/dispatch.h"

namespace mt2o::ops {

static void mask_(Tensor out, Tensor values, Tensor masks, MaybeTensor whole, Tensor chunks) {
  const Kernels& level = kernels();
  Mask s = mask_arguments(out, values, masks, whole);
  const Chunks all = chunks_of(chunks, whole.has_value() ? whole->numel() : -1, values.size(1));
  s.chunks = all.data;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.mask(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("mask_", TORCH_BOX(&mt2o::ops::mask_)); }
