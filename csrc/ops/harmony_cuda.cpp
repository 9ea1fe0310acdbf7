#include "harmony.h"

#include "cuda.h"

namespace mt2o::ops {
namespace {

void harmony_cuda_(Tensor scores, Tensor grads, Tensor values, Tensor factors, Tensor masks, MaybeTensor whole,
                   Tensor chunks, MaybeTensor addresses, double gamma, bool magnitude, bool dense) {
  const CurrentDevice device(scores, "scores");
  device.check(grads, "grads"), device.check(values, "values"), device.check(factors, "factors");
  device.check(masks, "masks"), device.check(whole, "whole"), device.check(chunks, "chunks");
  device.check(addresses, "addresses");
  Harmony s = harmony_arguments(scores, grads, values, factors, masks, whole, addresses);
  s.chunks = chunk_table(chunks).data, s.gamma = gamma, s.magnitude = magnitude, s.dense = dense;
  check_launched(cuda::harmony(s, extent_of(chunks, grads), device.stream()), "harmony_");
}

void exchange_cuda_(Tensor masks, Tensor counts, Tensor state, Tensor scores, Tensor chunks, int64_t amount) {
  const CurrentDevice device(masks, "masks");
  device.check(counts, "counts"), device.check(state, "state"), device.check(scores, "scores");
  device.check(chunks, "chunks");
  const Chunk* table = chunk_table(chunks).data;
  Exchange s = exchange_arguments(masks, counts, state, scores, chunks, amount);
  s.chunks = table;
  check_launched(cuda::exchange(s, device.stream()), "exchange_");
}

}  // namespace
}  // namespace mt2o::ops

STABLE_TORCH_LIBRARY_IMPL(MT2O_LIBRARY, MT2O_DEVICE, m) {
  m.impl("harmony_", TORCH_BOX(&mt2o::ops::harmony_cuda_));
  m.impl("exchange_", TORCH_BOX(&mt2o::ops::exchange_cuda_));
}
