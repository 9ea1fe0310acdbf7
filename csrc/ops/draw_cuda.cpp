#include "draw.h"

#include "cuda.h"

namespace mt2o::ops {

static void draw_cuda_(Tensor out, Tensor key, std::vector<Tensor> ids, int64_t stream) {
  const CurrentDevice device(out, "out");
  device.check(key, "key");
  for (const Tensor& id : ids) device.check(id, "ids");
  check_launched(cuda::draw(draws_of(out, key, ids, stream), device.stream()), "draw_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) { m.impl("draw_", TORCH_BOX(&mt2o::ops::draw_cuda_)); }
