#include "transfer.h"

#include "cuda.h"
#include "mix.h"

namespace mt2o::ops {

static void transfer_cuda_(Tensor theta, Tensor mix, Tensor chunks) {
  const CurrentDevice device(theta, "theta");
  device.check(mix, "mix"), device.check(chunks, "chunks");
  Transfer s = transfer_arguments(theta);
  const DenseMix dense = {check_mix(mix, s.rows, -1), const_data<double>(mix)};
  s.chunks = chunk_table(chunks).data;
  check_launched(cuda::transfer(s, dense, extent_of(chunks, theta), device.stream()), "transfer_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) { m.impl("transfer_", TORCH_BOX(&mt2o::ops::transfer_cuda_)); }
