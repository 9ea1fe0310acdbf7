#include "step.h"

#include "../cpu/dispatch.h"
#include "mix.h"

namespace mt2o::ops {

void step_(Tensor theta, MaybeTensor exp_avg, MaybeTensor exp_avg_sq, MaybeTensor max_exp_avg_sq, MaybeTensor ema,
           MaybeTensor low_precision, Tensor step, Tensor constants, Tensor grads, MaybeTensor weights, MaybeTensor mix,
           Tensor segments, Tensor chunks, MaybeTensor active, MaybeTensor grad_scale, MaybeTensor found_inf,
           MaybeTensor addresses, MaybeTensor masks, MaybeTensor whole, int64_t rule, int64_t order, bool hold) {
  const Kernels& level = kernels();
  const StepTensors tensors = {
      theta,    exp_avg, exp_avg_sq, max_exp_avg_sq, ema,       low_precision, step,  constants, grads, weights, mix,
      segments, chunks,  active,     grad_scale,     found_inf, addresses,     masks, whole,     rule,  order,   hold};
  Step s = step_arguments(tensors);
  check_addresses(s.grads, addresses);
  const StepCounters counters = step_counters(tensors, s);
  const Chunks all = chunks_of(chunks, s.segments, theta.size(1));
  s.chunks = all.data;
  std::optional<MixBuffer> buffer;
  if (mix.has_value()) {
    buffer.emplace(*mix, s.rows, s.segments, s.type);
    s.mix = buffer->packed();
  }
  for (int64_t k = 0; k < s.rows; ++k)
    for (int64_t segment = 0; segment < s.segments; ++segment) advance_counter(counters, k, segment);
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.step(s, first, last); });
}

}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) { m.impl("step_", TORCH_BOX(&mt2o::ops::step_)); }
