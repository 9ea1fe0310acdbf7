#include "finite.h"

#include "cuda.h"

namespace mt2o::ops {

static void finite_cuda_(Tensor found_inf, Tensor grads, Tensor chunks, MaybeTensor addresses) {
  const CurrentDevice device(grads, "grads");
  device.check(found_inf, "found_inf"), device.check(chunks, "chunks");
  device.check(addresses, "addresses");
  Finite s = finite_arguments(found_inf, grads, addresses);
  s.chunks = chunk_table(chunks).data;
  check_launched(cuda::finite(s, extent_of(chunks, grads), device.stream()), "finite_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) { m.impl("finite_", TORCH_BOX(&mt2o::ops::finite_cuda_)); }
