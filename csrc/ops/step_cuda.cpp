#include "step.h"

#include "cuda.h"
#include "mix.h"

namespace mt2o::ops {

static void check_devices(const StepTensors& t, const CurrentDevice& device) {
  device.check(t.exp_avg, "exp_avg"), device.check(t.exp_avg_sq, "exp_avg_sq");
  device.check(t.max_exp_avg_sq, "max_exp_avg_sq"), device.check(t.ema, "ema");
  device.check(t.low_precision, "low_precision"), device.check(t.step, "step"), device.check(t.constants, "constants");
  device.check(t.grads, "grads"), device.check(t.weights, "weights"), device.check(t.mix, "mix");
  device.check(t.segments, "segments"), device.check(t.chunks, "chunks"), device.check(t.active, "active");
  device.check(t.grad_scale, "grad_scale"), device.check(t.found_inf, "found_inf");
  device.check(t.addresses, "addresses"), device.check(t.masks, "masks"), device.check(t.whole, "whole");
}

static void step_cuda_(Tensor theta, MaybeTensor exp_avg, MaybeTensor exp_avg_sq, MaybeTensor max_exp_avg_sq,
                       MaybeTensor ema, MaybeTensor low_precision, Tensor step, Tensor constants, Tensor grads,
                       MaybeTensor weights, MaybeTensor mix, Tensor segments, Tensor chunks, MaybeTensor active,
                       MaybeTensor grad_scale, MaybeTensor found_inf, MaybeTensor addresses, MaybeTensor masks,
                       MaybeTensor whole, int64_t rule, int64_t order, bool hold) {
  const StepTensors tensors = {
      theta,    exp_avg, exp_avg_sq, max_exp_avg_sq, ema,       low_precision, step,  constants, grads, weights, mix,
      segments, chunks,  active,     grad_scale,     found_inf, addresses,     masks, whole,     rule,  order,   hold};
  const CurrentDevice device(theta, "theta");
  check_devices(tensors, device);
  Step s = step_arguments(tensors);
  const StepCounters counters = step_counters(tensors, s);
  DenseMix dense = {};
  if (mix.has_value()) dense = {check_mix(*mix, s.rows, s.segments), const_data<double>(*mix)};
  s.chunks = chunk_table(chunks).data;
  check_launched(cuda::step(s, counters, dense, extent_of(chunks, theta), device.stream()), "step_");
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) { m.impl("step_", TORCH_BOX(&mt2o::ops::step_cuda_)); }
