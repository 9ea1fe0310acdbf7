#include "harmony.h"

#include "../cpu/dispatch.h"
#include "../cpu/exchange.h"

namespace mt2o::ops {
namespace {

void harmony_(Tensor scores, Tensor grads, Tensor values, Tensor factors, Tensor masks, MaybeTensor whole,
              Tensor chunks, MaybeTensor addresses, double gamma, bool magnitude, bool dense) {
  const Kernels& level = kernels();
  Harmony s = harmony_arguments(scores, grads, values, factors, masks, whole, addresses);
  check_addresses(s.grads, addresses);
  const int64_t segments = addresses.has_value() ? addresses->size(2) : whole.has_value() ? whole->numel() : -1;
  const Chunks all = chunks_of(chunks, segments, grads.size(2));
  s.chunks = all.data, s.gamma = gamma, s.magnitude = magnitude, s.dense = dense;
  parallel_chunks(all, [&](int64_t first, int64_t last) { level.harmony(s, first, last); });
}

void exchange_(Tensor masks, Tensor counts, Tensor state, Tensor scores, Tensor chunks, int64_t amount) {
  const Chunks all = chunks_of(chunks, -1, scores.size(1));
  Exchange s = exchange_arguments(masks, counts, state, scores, chunks, amount);
  s.chunks = all.data;
  torch::stable::parallel_for(0, s.tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) cpu::exchange(s, task);
  });
}

}  // namespace
}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(mt2o_ext, CPU, m) {
  m.impl("harmony_", TORCH_BOX(&mt2o::ops::harmony_));
  m.impl("exchange_", TORCH_BOX(&mt2o::ops::exchange_));
}
