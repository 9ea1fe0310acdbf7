#include "combine.h"

#include "cuda.h"

namespace mt2o::ops {

static void combine_cuda_(Tensor out, Tensor grads, Tensor weights, Tensor chunks, MaybeTensor addresses) {
  const CurrentDevice device(out, "out");
  device.check(grads, "grads"), device.check(weights, "weights"), device.check(chunks, "chunks");
  device.check(addresses, "addresses");
  Combine s = combine_arguments(out, grads, weights, addresses);
  s.chunks = chunk_table(chunks).data;
  check_launched(cuda::combine(s, extent_of(chunks, out), device.stream()), "combine_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) { m.impl("combine_", TORCH_BOX(&mt2o::ops::combine_cuda_)); }
