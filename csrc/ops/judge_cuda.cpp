#include "judge.h"

#include "cuda.h"

namespace mt2o::ops {
namespace {

void check_device(const CurrentDevice& device, const Tensors& scalars) {
  for (const Tensor& scalar : scalars) device.check(scalar, "scalars");
}

// Gathers what one launch cannot take; its own are left in s.
void gather_most(Losses& s, const Tensors& scalars, const CurrentDevice& device) {
  while (take_scalars(s, scalars)) check_launched(cuda::judge(s, device.stream()), "judge_");
}

void judge_cuda_(Tensor found, Tensor flags, MaybeTensor losses, MaybeTensor sums, MaybeTensor filled,
                 MaybeTensor usable_losses, MaybeTensor largest, Tensors scalars, MaybeTensor grams, MaybeTensor factor,
                 MaybeTensor before, MaybeTensor outside, double limit, bool together) {
  const CurrentDevice device(found, "found");
  device.check(flags, "flags"), device.check(losses, "losses"), device.check(sums, "sums");
  device.check(filled, "filled"), device.check(usable_losses, "usable_losses"), device.check(largest, "largest");
  device.check(grams, "grams"), device.check(factor, "factor"), device.check(before, "before");
  device.check(outside, "outside"), check_device(device, scalars);
  Judge s = judge_arguments(
      {found, flags, losses, sums, filled, usable_losses, largest, scalars, grams, factor, before, outside}, limit,
      together);
  gather_most(s.losses, scalars, device);
  check_launched(cuda::judge(s, device.stream()), "judge_");
}

void settle_cuda_(Tensor weights, Tensor applied, Tensor flags, Tensor refusals, Tensor found, MaybeTensor losses,
                  Tensor raw, Tensors scalars, MaybeTensor judged, MaybeTensor before, MaybeTensor outside,
                  MaybeTensor largest, int64_t tasks, double limit, int64_t offset, double divisor) {
  const CurrentDevice device(raw, "raw");
  device.check(weights, "weights"), device.check(applied, "applied"), device.check(flags, "flags");
  device.check(refusals, "refusals"), device.check(found, "found"), device.check(losses, "losses");
  device.check(judged, "judged"), device.check(before, "before"), device.check(outside, "outside");
  device.check(largest, "largest"), check_device(device, scalars);
  Settle s = settle_arguments(
      {weights, applied, flags, refusals, found, losses, raw, scalars, judged, before, outside, largest}, tasks, limit,
      offset, divisor);
  gather_most(s.losses, scalars, device);
  check_launched(cuda::settle(s, device.stream()), "settle_");
}

void count_cuda_(Tensor counts, MaybeTensor table, Tensor found, MaybeTensor refusals, MaybeTensor weights,
                 MaybeTensor finite, int64_t offset, bool together, bool expected) {
  const CurrentDevice device(counts, "counts");
  device.check(table, "table"), device.check(found, "found"), device.check(refusals, "refusals");
  device.check(weights, "weights"), device.check(finite, "finite");
  const Count s = count_arguments({counts, table, found, refusals, weights, finite}, offset, together, expected);
  check_launched(cuda::count(s, device.stream()), "count_");
}

}  // namespace
}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) {
  m.impl("judge_", TORCH_BOX(&mt2o::ops::judge_cuda_));
  m.impl("settle_", TORCH_BOX(&mt2o::ops::settle_cuda_));
  m.impl("count_", TORCH_BOX(&mt2o::ops::count_cuda_));
}
