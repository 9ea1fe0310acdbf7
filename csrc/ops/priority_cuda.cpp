#include "priority.h"

#include "cuda.h"

namespace mt2o::ops {

// What owners, records and chunks say is not looked at: reading a GPU's memory would wait for it.
static void priority_cuda_(Tensor out, Tensor dots, Tensor coefficients, Tensor grads, Tensor owners, Tensor records,
                           Tensor chunks) {
  const CurrentDevice device(grads, "grads");
  device.check(out, "out"), device.check(dots, "dots"), device.check(coefficients, "coefficients");
  device.check(owners, "owners"), device.check(records, "records"), device.check(chunks, "chunks");
  const PriorityArguments all = priority_arguments(out, dots, coefficients, grads, owners, records, chunks);
  check_launched(cuda::priority(all.s, all.layers, extent_of(chunks, grads), device.stream()), "priority_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) { m.impl("priority_", TORCH_BOX(&mt2o::ops::priority_cuda_)); }
