#include "mask.h"

#include "cuda.h"

namespace mt2o::ops {

static void mask_cuda_(Tensor out, Tensor values, Tensor masks, MaybeTensor whole, Tensor chunks) {
  const CurrentDevice device(values, "values");
  device.check(out, "out"), device.check(masks, "masks"), device.check(whole, "whole"), device.check(chunks, "chunks");
  Mask s = mask_arguments(out, values, masks, whole);
  s.chunks = chunk_table(chunks).data;
  check_launched(cuda::mask(s, extent_of(chunks, values), device.stream()), "mask_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) { m.impl("mask_", TORCH_BOX(&mt2o::ops::mask_cuda_)); }
